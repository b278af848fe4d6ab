"""Prompt files as they come: written by other programs in many ways, or damaged. Each is read right, or refused."""

from __future__ import annotations

import csv
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condistill.errors import CondistillError
from condistill.prompts import PromptPool
from condistill.prompts.readers import describe_source
from condistill.prompts.text import clean_prompt

PROMPTS = [
    "a red star",
    "a blue cross, on snow",
    'a "green" moon; large',
    "雪地上的一颗红星",
    "ein Fuß|Schuh\tim Gras",
    "👩\u200d🚀 in space",
    "A photo of a cat's paw",
]
JUNK = ["", " ", "\u200b", "\u00a0", "\u3000", "\u2060"]
SECONDS = 2.0


def read(path: Path, column: str | None = None) -> list[str] | None:
    """Return the prompts of a file, or None if it is refused; check what holds for every file."""
    start, refusal, prompts, first = time.process_time(), None, [], None
    try:
        source = describe_source(path, column=column)
        first, column = source.first_prompt, source.column
        prompts = list(PromptPool.build([path], path.with_suffix(".pool"), column=column))
    except CondistillError as error:
        refusal = str(error)
    assert time.process_time() - start < SECONDS
    if refusal is not None:
        assert path.name in refusal
        assert "\n" not in refusal
        assert len(refusal) < 1000 + len(str(path))
        return None
    assert first == prompts[0]
    assert all(prompt and clean_prompt(prompt) == (prompt, False) for prompt in prompts)
    return prompts


def lines_of(rng: random.Random, prompts: list[str]) -> list[str]:
    """Return prompts among lines that show nothing."""
    return [line for prompt in prompts for line in (prompt, *rng.choices(JUNK, k=rng.randrange(2)))]


def encode(rng: random.Random, text: str) -> bytes:
    """Return a text with other line ends, byte order marks, and sometimes in another encoding."""
    text = text.replace("\n", rng.choice(["\n", "\n", "\r\n", "\r"]))
    if rng.random() < 0.3:
        text = "\ufeff" + text
    encoding = rng.choices(["utf-8", "utf-16", "utf-16-le", "cp1252", "gb18030"], [20, 1, 1, 1, 1])[0]
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:  # the program would not have written this file
        return text.encode()


def write_txt(rng: random.Random, path: Path, prompts: list[str]) -> None:
    mark = rng.choices(["", "\ufeff", "\x1b", "\x00"], [6, 3, 3, 1])[0]
    text = "\n".join(rng.choice(["", mark]) + line for line in lines_of(rng, prompts))
    path.write_bytes(encode(rng, text + rng.choice(["", "\n"])))


def write_csv(rng: random.Random, path: Path, prompts: list[str]) -> None:
    """Write a csv file as spreadsheets and scripts do."""
    buffer = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    writer = csv.writer(buffer, delimiter=rng.choice(",,;\t|"), quoting=quoting, lineterminator="\n")
    more = rng.randrange(3)
    header = ["prompt", *rng.sample(["id", "source", "file_name"], more)]
    rows = [header] if rng.random() < 0.8 else []
    rows += [[line, *(["0001.png", "web"][:more])] for line in lines_of(rng, prompts)]
    order = rng.sample(range(more + 1), more + 1)
    for row in rows:
        writer.writerow([row[i] for i in order])
        if rng.random() < 0.1:
            buffer.write("\n")
    path.write_bytes(encode(rng, buffer.getvalue()))


def write_jsonl(rng: random.Random, path: Path, prompts: list[str]) -> None:
    is_ascii, in_lists = rng.random() < 0.5, rng.random() < 0.3
    records: list[dict[str, Any]] = [{"prompt": [text] if in_lists else text} for text in lines_of(rng, prompts)]
    for number, record in enumerate(records):
        record.update({key: value for key, value in (("id", number), ("file", f"{number}.png")) if rng.random() < 0.5})
    path.write_bytes(encode(rng, "".join(json.dumps(r, ensure_ascii=is_ascii) + "\n" for r in records)))


def write_parquet(rng: random.Random, path: Path, prompts: list[str]) -> None:
    texts: list[Any] = lines_of(rng, prompts) + [None] * rng.randrange(2)
    kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.list_(pa.string())]
    kind = rng.choice(kinds)
    if pa.types.is_list(kind):
        column = pa.array([[text] for text in texts], kind)
    else:
        column = pa.array(texts, pa.string()).cast(kind)
    table = pa.table({"prompt": column, "n": range(len(texts))})
    pq.write_table(table, path, row_group_size=rng.randrange(1, 6), compression=rng.choice(["snappy", "none", "zstd"]))


WRITERS: dict[str, Callable[[random.Random, Path, list[str]], None]] = {
    "txt": write_txt,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return bytes of which some are changed, removed, repeated or inserted."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(changed) + 1)
        length = rng.choice([1, 1, 3, 40, len(changed) // 2])
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                changed[at:at] = rng.choice(
                    [b'"', b"\n", b"\r", b"\0", b",", b";", b"\xef\xbb\xbf", b"\xff", b"{", b"\x1b", b"[" * 99]
                )
            case 4:
                changed[at:] = b""
    return bytes(changed)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("count", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_a_file_of_another_program_is_read_right_or_refused(tmp_path: Path, kind: str, count: int) -> None:
    refused = 0
    for seed in range(count):
        rng = random.Random(f"{kind} {seed}")
        prompts = rng.sample(PROMPTS, rng.randrange(1, len(PROMPTS) + 1))
        path = tmp_path / f"{seed}.{kind}"
        WRITERS[kind](rng, path, prompts)
        found = read(path)
        if found is None and kind != "txt":
            found = read(path, "prompt")
        refused += found is None
        assert found in (None, prompts), path.read_bytes()
    assert refused < count / 2


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("count", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, kind: str, count: int) -> None:
    for seed in range(count):
        rng = random.Random(f"damaged {kind} {seed}")
        path = tmp_path / f"{seed}.{kind}"
        WRITERS[kind](rng, path, PROMPTS)
        path.write_bytes(damage(rng, path.read_bytes()))
        read(path)
        read(path, "prompt" if kind != "txt" else None)
