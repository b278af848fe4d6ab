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


def fails(path: Path | str, *parts: str, column: str | None = None) -> None:
    with pytest.raises(CondistillError) as caught:
        list(read_prompts(path, column=column))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_text_has_a_prompt_a_line_whatever_the_line_ends_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.TXT", "\ufeffa cat\r\n\nein Fuß\u2028hier\nlast")
    assert list(read_prompts(path, column="prompt")) == ["a cat", "", "ein Fuß\u2028hier", "last"]


def test_csv_keeps_quoted_commas_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,prompt\n1,"a cat, asleep"\n\n2,"two\nlines"\n')
    assert list(read_prompts(path, column="prompt")) == ["a cat, asleep", "two\nlines"]


def test_a_csv_of_one_column_needs_no_name(tmp_path: Path) -> None:
    assert list(read_prompts(write(tmp_path / "a.csv", "caption\na cat\n1984\n"))) == ["a cat", "1984"]


def test_jsonl_takes_the_only_column_of_text_and_nulls_are_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 1, "text": "a cat"}\n\n{"text": null, "note": "x"}\n')
    assert list(read_prompts(path)) == ["a cat", ""]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_is_read_over_row_groups_for_every_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["a", None, "c", "d", "a", "f", "g"]
    path = write_parquet(tmp_path / "a.parquet", n=pa.array(range(7)), text=pa.array(texts, pa.string()).cast(kind))
    assert list(read_prompts(path)) == ["a", "", "c", "d", "a", "f", "g"]


def test_miniature_stands_for_its_captions() -> None:
    from condistill.miniature.world import all_captions

    assert list(read_prompts("miniature")) == all_captions()
    assert not is_tabular("miniature")


def test_files_are_streamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a cat"}\nnot json\n')
    assert next(read_prompts(path)) == "a cat"


def test_what_is_no_prompt_file_is_refused_at_once(tmp_path: Path) -> None:
    for path, part in (
        (tmp_path / "none.txt", "there is no prompt file"),
        (tmp_path, "is a folder"),
        (write(tmp_path / "a.csv.gz", b""), "ends in '.gz'; prompts are read from .txt, .csv, .jsonl, .parquet files"),
    ):
        with pytest.raises(CondistillError, match=part):
            read_prompts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_text_that_is_not_utf8_is_told_with_byte_and_line(tmp_path: Path, name: str) -> None:
    first = json.dumps({"c": "x"}).encode()
    fails(write(tmp_path / name, first + b"\nFu\xdf\n"), "not UTF-8", f"byte {len(first) + 3}", "line 2")


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    files = (
        write(tmp_path / "a.csv", "prompt,url\na,b\n"),
        write(tmp_path / "a.jsonl", '{"prompt": "a", "url": "b"}\n'),
        write_parquet(tmp_path / "a.parquet", prompt=pa.array(["a"]), url=pa.array(["b"])),
    )
    for path in files:
        fails(path, path.name, "no column 'promt' (prompt, url)", "did you mean 'prompt'?", column="promt")
        fails(path, path.name, "no column 'zzz'", "valid names: prompt, url", column="zzz")
        fails(path, path.name, "more than one column", "(prompt, url)", "name one")


def test_a_column_must_be_text_and_unambiguous(tmp_path: Path) -> None:
    numbers = write_parquet(tmp_path / "a.parquet", n=pa.array([1]), text=pa.array(["a"]))
    fails(numbers, "'n'", "is not text", "text", column="n")
    fails(write_parquet(tmp_path / "b.parquet", n=pa.array([1])), "no column that may be text (n)")
    fails(write(tmp_path / "a.jsonl", '{"n": 1}\n'), "is not text", column="n")
    fails(write(tmp_path / "b.jsonl", '{"n": "a"}\n{"n": 3}\n'), "line 2", "is not text: 3")
    fails(write(tmp_path / "a.csv", "a,a\n1,2\n"), "more than one column 'a'", column="a")
    fails(write(tmp_path / "empty.csv", ""), "no columns")


def test_a_bad_line_is_told_with_its_number(tmp_path: Path) -> None:
    good = '{"p": "a"}\n'
    fails(write(tmp_path / "a.jsonl", good + "{'p': 1}\n"), "line 2", "is not JSON")
    fails(write(tmp_path / "b.jsonl", good + '"a cat"\n'), "line 2", "is not a JSON object")
    fails(write(tmp_path / "c.jsonl", good + '\n{"q": "b"}\n'), "no 'p' on line 3; it has q")
    fails(write(tmp_path / "a.csv", "p,q\na,b\na, cat, asleep\n"), "3 fields on line 3", "quoted", column="p")
    fails(write(tmp_path / "b.csv", 'p\na\n"never closed\n'), "is not valid csv", "line 3")


def test_a_damaged_parquet_file_is_told(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=pa.array(["a cat"] * 9))
    whole = path.read_bytes()
    fails(write(path, whole[:-20]), "cannot be read as parquet")
    fails(write(path, b"not parquet at all"), "cannot be read as parquet")
    fails(write(path, b""), "cannot be read as parquet")
    fails(write(path, b"PAR1" + b"\xff" * 60 + whole[64:]), "cannot be read as parquet")
