from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condistill.errors import CondistillError
from condistill.prompts import lines
from condistill.prompts.readers import PromptSource, describe_source, is_tabular, read_prompts


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
    assert_error(write_parquet(tmp_path / "b.parquet", n=pa.array([1])), "no text column (n: int64)")
    assert_error(write(tmp_path / "a.jsonl", '{"n": 1}\n'), "is not text", column="n")
    assert_error(write(tmp_path / "b.jsonl", '{"n": "a"}\n{"n": 3}\n'), "line 2", "is not text: 3")
    assert_error(write(tmp_path / "a.csv", "a,a\n1,2\n"), "more than one column 'a'", column="a")
    assert_error(write(tmp_path / "empty.csv", ""), "is empty; write a header line")


def test_an_error_about_an_invalid_line_names_its_number(tmp_path: Path) -> None:
    good = '{"p": "a"}\n'
    assert_error(write(tmp_path / "a.jsonl", good + "{'p': 1}\n"), "line 2", "is not JSON")
    assert_error(write(tmp_path / "b.jsonl", good + '"a cat"\n'), "line 2", "is not a JSON object")
    assert_error(write(tmp_path / "c.jsonl", good + '\n{"q": "b"}\n'), "line 3", "has no key 'p'; its keys: q")
    assert_error(write(tmp_path / "a.csv", "p,q\na,b\na, cat, asleep\n"), "3 fields on line 3", "in quotes", column="p")
    assert_error(write(tmp_path / "b.csv", 'text\na\n"never closed\n'), "is not valid csv", "line 3")


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=pa.array(["a cat"] * 9))
    content = path.read_bytes()
    assert_error(write(path, content[:-20]), "is not valid parquet")
    assert_error(write(path, b"not parquet at all"), "is not valid parquet")
    assert_error(write(path, b""), "is not valid parquet")
    assert_error(write(path, b"PAR1" + b"\xff" * 60 + content[64:]), "is not valid parquet")


def read(path: Path, column: str | None = None) -> list[str]:
    return list(read_prompts(path, column=column))


def test_old_mac_line_ends_end_lines_in_every_text_format(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "a red star\ra blue cross\r")) == ["a red star", "a blue cross"]
    assert read(write(tmp_path / "a.csv", "prompt\ra red star\ra moon")) == ["a red star", "a moon"]
    assert read(write(tmp_path / "a.jsonl", '{"prompt": "a star"}\r{"prompt": "a moon"}\r')) == ["a star", "a moon"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_whole_where_blocks_of_the_file_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    prompts = [f"prompt {number} ä" for number in range(50)]
    path = write(tmp_path / "a.txt", end.join(prompts))
    for size in (1, 7, 64):
        monkeypatch.setattr(lines, "_BLOCK_BYTES", size)
        assert read(path) == prompts


def test_a_byte_order_mark_at_the_start_of_any_line_is_left_out(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "\ufeffa red star\n\ufeffa cross\n")) == ["a red star", "a cross"]
    assert read(write(tmp_path / "a.csv", '\ufeffid,prompt\n\ufeff"1",a star\n'), "prompt") == ["a star"]
    jsonl = '\ufeff{"prompt": "a"}\n\ufeff{"prompt": "b"}\n'
    assert read(write(tmp_path / "a.jsonl", jsonl)) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_utf16_files_are_refused_by_name(tmp_path: Path, name: str, encoding: str) -> None:
    assert_error(write(tmp_path / name, "prompt\na red star\n".encode(encoding)), name, "UTF-16", "save it as UTF-8")


def test_a_nul_in_a_text_file_is_refused_with_its_place(tmp_path: Path) -> None:
    assert_error(write(tmp_path / "a.txt", "a star\r\na\0b\n"), "byte 9, on line 2, is NUL", "save it as UTF-8")


@pytest.mark.parametrize(
    ("separator", "name"), [(";", "semicolon"), ("\t", "tab"), ("|", "vertical bar"), (",", "comma")]
)
def test_the_separator_of_a_csv_file_is_found_in_its_header(tmp_path: Path, separator: str, name: str) -> None:
    text = f'prompt{separator}source\na red star{separator}web\n"a{separator} b"{separator}book\n'
    path = write(tmp_path / "a.csv", text)
    assert read(path, "prompt") == ["a red star", f"a{separator} b"]
    assert_error(path, "more than one text column (prompt, source)", "name one with `column`")
    ragged = write(tmp_path / "b.csv", text + f"a{separator}b{separator}c\n")
    assert_error(ragged, "3 fields on line 4 and 2 columns", f"contains a {name} in quotes", column="prompt")
    short = write(tmp_path / "c.csv", text + "a\n")
    assert_error(short, "1 field on line 4 and 2 columns", "every column (prompt, source)", column="prompt")


def test_a_header_with_two_kinds_of_separators_is_refused_unless_the_column_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "prompt,score (a;b)\na red star,1\n")
    assert read(path, "prompt") == ["a red star"]
    assert_error(path, "comma (',') or semicolon (';')", "'prompt,score (a;b)'", "name the column")
    assert read(write(tmp_path / "b.csv", "sep=;\nprompt;score, b\na star;1\n"), "prompt") == ["a star"]


def test_spaces_before_quotes_and_around_names_do_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id, prompt \n1, "a red star, on snow"\n   \n')
    assert read(path, "prompt") == ["a red star, on snow"]


def test_a_csv_file_without_a_header_is_refused_and_its_first_line_is_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a red star\na blue cross\n")
    assert_error(path, "the first line", "'a red star'", "give it as `column`", "write a header line")
    assert read(path, "a red star") == ["a blue cross"]
    assert_error(write(tmp_path / "b.csv", "a star, on snow\na cross, on ice\n"), "(a star, on snow)", "`column`")
    assert_error(write(tmp_path / "d.csv", "the title page\na label\n"), "'the title page'", "not a usual name")
    for name in ("id^prompt", "id:prompt", "prompt~source"):  # separated by a character that is not known
        assert_error(write(tmp_path / "e.csv", f"{name}\n{name}\n"), repr(name), "not a usual name")
    for name in ("Prompt", "caption_en", "TEXT", '"prompts"', "alt-text", "text2"):
        assert read(write(tmp_path / "c.csv", f"{name}\na star\n")) == ["a star"]


@pytest.mark.parametrize("text", ["'prompt'\n'a red star'\n", "'id','prompt'\n'1','a star, on snow'\n"])
def test_a_csv_file_in_single_quotes_is_refused(tmp_path: Path, text: str) -> None:
    assert_error(write(tmp_path / "a.csv", text), "in single quotes", 'double quotes (")')


def test_an_unclosed_quote_is_reported_where_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text\n"a\nb"\n"a red star\n' + "a moon\n" * 30_000)
    assert_error(path, "in the row that starts on line 4", "close the quote")


def test_a_column_whose_name_another_column_has_too_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a star"]), pa.array([1])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert_error(tmp_path / "a.parquet", "more than one column 'prompt'")


def test_another_column_is_not_read_in_place_of_prompts_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": "x7", "prompt": {"text": "a star"}}\n')
    assert_error(path, "id, prompt: objects", "`column`")
    assert read(path, "id") == ["x7"]
    path = write_parquet(tmp_path / "a.parquet", id=pa.array(["x7"]), caption=pa.array([{"text": "a star"}]))
    assert_error(path, "id, caption: struct", "`column`")


def test_a_column_that_only_later_records_have_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"source": "web"}\n{"source": "book", "prompt": "a star"}\n')
    assert_error(path, "source, prompt", "`column`")
    assert read(path, "source") == ["web", "book"]
    path = write(tmp_path / "b.jsonl", '{"id": 1, "text": null}\n{"id": 2, "text": {"en": "a star"}}\n')
    assert_error(path, "text: objects")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"prompt": "a star"}\n', "JSON"),
        ('[\n"a star"\n]\n', "JSON"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "a pointer of Git LFS"),
        ("%PDF-1.7\na\n", "a PDF document"),
        ("{\\rtf1\\ansi a star}\n", "an RTF document"),
        ("<!DOCTYPE html>\n<html>\n", "an HTML page"),
    ],
)
def test_a_txt_file_of_another_format_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    assert_error(write(tmp_path / "a.txt", text), f"is {kind}", "one prompt on each line")


def test_a_list_of_texts_is_several_prompts(tmp_path: Path) -> None:
    jsonl = write(tmp_path / "a.jsonl", '{"n": 1, "text": ["a", null, "b"]}\n{"n": 2, "text": []}\n{"text": "c"}\n')
    assert read(jsonl) == ["a", "", "b", "c"]
    for kind in (
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int8(), pa.utf8())),
    ):
        column = pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string())).cast(kind)
        assert read(write_parquet(tmp_path / "a.parquet", text=column)) == ["a", "b", "c", ""]
    mixed = write(tmp_path / "b.jsonl", '{"text": ["a"]}\n{"text": ["a", 1]}\n')
    assert_error(mixed, "'text' on line 2", 'is not text: ["a", 1]')


def test_file_names_do_not_become_prompts_unless_their_column_is_named(tmp_path: Path) -> None:
    captions = write(tmp_path / "a.jsonl", '{"file_name": "0000.png", "text": ["a star", "a red star"]}\n' * 2)
    assert_error(captions, "file_name, text: lists of texts", "name one with `column`")
    assert read(captions, "text") == ["a star", "a red star"] * 2
    files = write(tmp_path / "b.jsonl", '{"image": "train/0000.JPG", "size": 3}\n{"image": "1.webp"}\n')
    assert_error(files, "column 'image'", "names of files, such as 'train/0000.JPG'")
    assert read(files, "image") == ["train/0000.JPG", "1.webp"]
    assert_error(write(tmp_path / "c.txt", "a.png\n\nb.png\n"), "c.txt has names of files")
    assert_error(write_parquet(tmp_path / "d.parquet", url=pa.array(["https://x.org/1"])), "names of files")
    assert read(write(tmp_path / "e.txt", "a.png\na red star\n")) == ["a.png", "a red star"]


def test_columns_that_are_not_text_are_listed_with_their_types(tmp_path: Path) -> None:
    binary = write_parquet(tmp_path / "a.parquet", text=pa.array([b"a"]), n=pa.array([1], pa.int8()))
    assert_error(binary, "no text column (text: binary, n: int8)", "write the prompts as text")
    assert_error(binary, "'text'", "is not text but binary; text columns: none", column="text")
    jsonl = write(tmp_path / "a.jsonl", '{"a": {"b": "c"}, "n": 1, "l": [1], "t": true}\n')
    assert_error(jsonl, "no text column (a: objects, n: numbers, l: lists, t: true or false)")


def test_long_names_and_control_characters_in_names_stay_on_one_short_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",".join(["x" * 1000, "a\x1b[31m", *map(str, range(300))]) + "\n")
    with pytest.raises(CondistillError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert "'a\\x1b[31m'" in message
    assert "and 282 more" in message
    assert len(message) < len(str(path)) + 400
    with pytest.raises(CondistillError) as caught:
        read_prompts(path, column="none")
    assert len(str(caught.value)) < len(str(path)) + 400
    assert_error(write(tmp_path / "b.csv", '"a\nb",c\n'), "no column 'd' ('a\\nb', c)", column="d")


def test_a_file_that_is_no_regular_file_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert_error(tmp_path / "a.txt", "is not a regular file")
    assert_error(tmp_path / f"{'x' * 300}.txt", "cannot be read")


def test_a_source_shows_its_column_and_its_first_prompt(tmp_path: Path) -> None:
    table = write_parquet(
        tmp_path / "a.parquet", n=pa.array([1, 2, 3]), text=pa.array([None, "\u200b", " a\x1b star "])
    )
    source = describe_source(table)
    assert source == PromptSource(str(table), "text", "a star")
    assert str(source) == "a.parquet, column 'text': the first prompt is 'a star'"
    long = describe_source(write(tmp_path / "b.txt", "x" * 500))
    assert (long.column, long.first_prompt) == (None, "x" * 500)
    assert len(str(long)) < 130


def test_a_line_that_no_program_wrote_as_text_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_MAX_LINE_BYTES", 2**20)
    for name in ("a.txt", "a.csv", "a.jsonl"):
        assert_error(write(tmp_path / name, "x" * (2**20 + 2**17)), "has a line of more than 1.00 MiB")


def test_a_header_with_many_columns_is_read(tmp_path: Path) -> None:
    names = ",".join(f"column{number}" for number in range(20_000))
    path = write(tmp_path / "a.csv", f"{names},prompt\n{',' * 20_000}a star\n")
    assert read(path, "prompt") == ["a star"]
