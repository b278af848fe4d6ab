from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condistill.errors import CondistillError
from condistill.prompts.readers import is_tabular, read_prompts


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_parquet(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def assert_error(path: Path | str, *parts: str, column: str | None = None) -> None:
    with pytest.raises(CondistillError) as caught:
        list(read_prompts(path, column=column))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_txt_file_has_one_prompt_per_line_with_any_line_ending_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.TXT", "\ufeffa cat\r\n\nein Fuß\u2028hier\nlast")
    assert list(read_prompts(path, column="prompt")) == ["a cat", "", "ein Fuß\u2028hier", "last"]


def test_a_csv_field_in_quotes_keeps_commas_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,prompt\n1,"a cat, asleep"\n\n2,"two\nlines"\n')
    assert list(read_prompts(path, column="prompt")) == ["a cat, asleep", "two\nlines"]


def test_a_csv_file_with_one_column_needs_no_column_name(tmp_path: Path) -> None:
    assert list(read_prompts(write(tmp_path / "a.csv", "caption\na cat\n1984\n"))) == ["a cat", "1984"]


def test_a_jsonl_file_uses_its_only_text_column_and_reads_nulls_as_empty_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "text": "a cat"}\n\n{"text": null, "note": "x"}\n')
    assert list(read_prompts(path)) == ["a cat", ""]


@pytest.mark.parametrize("data_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_is_read_across_row_groups_for_every_text_type(tmp_path: Path, data_type: pa.DataType) -> None:
    texts = ["a", None, "c", "d", "a", "f", "g"]
    path = write_parquet(
        tmp_path / "a.parquet", n=pa.array(range(7)), text=pa.array(texts, pa.string()).cast(data_type)
    )
    assert list(read_prompts(path)) == ["a", "", "c", "d", "a", "f", "g"]


def test_the_name_miniature_reads_the_captions_of_the_miniature_world() -> None:
    from condistill.miniature.world import all_captions

    assert list(read_prompts("miniature")) == all_captions()
    assert not is_tabular("miniature")


def test_files_are_streamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a cat"}\nnot json\n')
    assert next(read_prompts(path)) == "a cat"


def test_paths_that_are_not_prompt_files_are_refused_at_once(tmp_path: Path) -> None:
    for path, part in (
        (tmp_path / "none.txt", "there is no prompt file"),
        (tmp_path, "is a folder"),
        (write(tmp_path / "a.csv.gz", b""), "has the extension '.gz'; valid: .txt, .csv, .jsonl, .parquet"),
    ):
        with pytest.raises(CondistillError, match=part):
            read_prompts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_an_error_about_invalid_utf8_names_the_byte_and_the_line(tmp_path: Path, name: str) -> None:
    first = json.dumps({"c": "x"}).encode()
    assert_error(write(tmp_path / name, first + b"\nFu\xdf\n"), "not UTF-8", f"byte {len(first) + 3}", "line 2")


def test_an_error_about_a_missing_column_lists_the_columns(tmp_path: Path) -> None:
    files = (
        write(tmp_path / "a.csv", "prompt,url\na,b\n"),
        write(tmp_path / "a.jsonl", '{"prompt": "a", "url": "b"}\n'),
        write_parquet(tmp_path / "a.parquet", prompt=pa.array(["a"]), url=pa.array(["b"])),
    )
    for path in files:
        assert_error(path, path.name, "no column 'promt' (prompt, url)", "did you mean 'prompt'?", column="promt")
        assert_error(path, path.name, "no column 'zzz'", "valid names: prompt, url", column="zzz")
        assert_error(path, path.name, "more than one text column (prompt, url)", "name one")


def test_a_column_must_be_text_and_unambiguous(tmp_path: Path) -> None:
    numbers = write_parquet(tmp_path / "a.parquet", n=pa.array([1]), text=pa.array(["a"]))
    assert_error(numbers, "'n'", "is not text", "text", column="n")
    assert_error(write_parquet(tmp_path / "b.parquet", n=pa.array([1])), "no text column (n)")
    assert_error(write(tmp_path / "a.jsonl", '{"n": 1}\n'), "is not text", column="n")
    assert_error(write(tmp_path / "b.jsonl", '{"n": "a"}\n{"n": 3}\n'), "line 2", "is not text: 3")
    assert_error(write(tmp_path / "a.csv", "a,a\n1,2\n"), "more than one column 'a'", column="a")
    assert_error(write(tmp_path / "empty.csv", ""), "no text column (no columns)")


def test_an_error_about_an_invalid_line_names_its_number(tmp_path: Path) -> None:
    good = '{"p": "a"}\n'
    assert_error(write(tmp_path / "a.jsonl", good + "{'p': 1}\n"), "line 2", "is not JSON")
    assert_error(write(tmp_path / "b.jsonl", good + '"a cat"\n'), "line 2", "is not a JSON object")
    assert_error(write(tmp_path / "c.jsonl", good + '\n{"q": "b"}\n'), "line 3", "has no key 'p'; its keys: q")
    assert_error(write(tmp_path / "a.csv", "p,q\na,b\na, cat, asleep\n"), "3 fields on line 3", "in quotes", column="p")
    assert_error(write(tmp_path / "b.csv", 'p\na\n"never closed\n'), "is not valid csv", "line 3")


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=pa.array(["a cat"] * 9))
    content = path.read_bytes()
    assert_error(write(path, content[:-20]), "is not valid parquet")
    assert_error(write(path, b"not parquet at all"), "is not valid parquet")
    assert_error(write(path, b""), "is not valid parquet")
    assert_error(write(path, b"PAR1" + b"\xff" * 60 + content[64:]), "is not valid parquet")
