"""Read prompts from text files and tables as a stream, so that a file of any size fits in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from condistill.config.sections import MINIATURE
from condistill.errors import CondistillError, nearest

TABULAR = (".csv", ".jsonl", ".parquet")
EXTENSIONS = (".txt", *TABULAR)
_PARQUET_ROWS = 8192


def read_prompts(path: Path | str, *, column: str | None = None) -> Iterator[str]:
    """Return an iterator over the prompts of a txt, csv, jsonl or parquet file.

    A txt file has one prompt per line. A null in a table is an empty prompt.

    Args:
        path: a file, or `miniature` for the captions of the embedded miniature world.
        column: the column of a table that contains the prompts. Default: the only text column (csv: the only column).

    Raises:
        CondistillError: the file does not exist, has another extension, or its content does not match its extension.
    """
    if str(path) == MINIATURE:
        from condistill.miniature.world import all_captions

        return iter(all_captions())
    path = Path(path)
    if path.is_dir():
        raise CondistillError(f"{path} is a folder; name its prompt files instead")
    if not path.exists():
        raise CondistillError(f"there is no prompt file {path}; a relative path starts at the folder of the recipe")
    match path.suffix.lower():
        case ".txt":
            return (line.rstrip("\r\n") for _, line in _lines(path))
        case ".csv":
            return _read_csv(path, column)
        case ".jsonl":
            return _read_jsonl(path, column)
        case ".parquet":
            return _read_parquet(path, column)
        case other:
            raise CondistillError(f"{path} has the extension {other!r}; valid: {', '.join(EXTENSIONS)}")


def is_tabular(path: Path | str) -> bool:
    """Return whether a file is a table with columns."""
    return str(path) != MINIATURE and Path(path).suffix.lower() in TABULAR


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line, line ending included."""
    offset = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise CondistillError(
                        f"{path} is not UTF-8: byte {offset + error.start}, on line {number}; save it as UTF-8"
                    ) from error
                offset += len(raw)
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except OSError as error:
        raise CondistillError(f"{path} cannot be read: {error.strerror}") from error


def _choose(path: Path, column: str | None, columns: Sequence[str], text: Sequence[str], where: str = "") -> str:
    """Return the column to read: `column`, or the only text column if it is None."""
    listed = ", ".join(columns) or "no columns"
    if column is None:
        if len(text) == 1:
            return text[0]
        found = "more than one text column" if text else "no text column"
        raise CondistillError(f"{path}{where} has {found} ({listed}); name one with `column`")
    if column not in columns:
        suggestion = nearest(column, columns)
        all_columns = "" if listed in suggestion else f" ({listed})"
        raise CondistillError(f"{path}{where} has no column {column!r}{all_columns}{suggestion}")
    if columns.count(column) > 1:
        raise CondistillError(f"{path} has more than one column {column!r} ({listed}); rename all but one")
    if column not in text:
        raise CondistillError(f"column {column!r} of {path} is not text; text columns: {', '.join(text) or 'none'}")
    return column


def _read_csv(path: Path, column: str | None) -> Iterator[str]:
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(rows, [])
        position = header.index(_choose(path, column, header, header))
        for row in rows:
            if len(row) == len(header):
                yield row[position]
            elif row:
                raise CondistillError(
                    f"{path} has {len(row)} fields on line {rows.line_num} and {len(header)} columns; "
                    "put fields that contain a comma in quotes"
                )
    except csv.Error as error:
        raise CondistillError(f"{path} is not valid csv: line {rows.line_num}: {error}; correct that line") from error


def _read_jsonl(path: Path, column: str | None) -> Iterator[str]:
    chosen = None
    for number, line in _lines(path):
        if not line.strip():
            continue
        record = _parse_record(path, number, line)
        if chosen is None:
            text = [key for key, value in record.items() if isinstance(value, str | None)]
            chosen = _choose(path, column, list(record), text, where=f", line {number},")
        if chosen not in record:
            raise CondistillError(
                f"line {number} of {path} has no key {chosen!r}; its keys: {', '.join(record) or 'none'}"
            )
        prompt = record[chosen]
        if not isinstance(prompt, str | None):
            raise CondistillError(f"{chosen!r} on line {number} of {path} is not text: {prompt!r}; put it in quotes")
        yield prompt or ""


def _parse_record(path: Path, number: int, line: str) -> dict[str, Any]:
    """Return the JSON object on a line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CondistillError(f"line {number} of {path} is not JSON: {error}; correct or delete it") from error
    if not isinstance(record, dict):
        raise CondistillError(
            f'line {number} of {path} is not a JSON object; write lines such as {{"prompt": "a cat"}}'
        )
    return record


def _is_text(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    is_string = pa.types.is_string(data_type) or pa.types.is_large_string(data_type)
    return bool(is_string or pa.types.is_string_view(data_type))


def _read_parquet(path: Path, column: str | None) -> Iterator[str]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            chosen = _choose(path, column, schema.names, [field.name for field in schema if _is_text(field.type)])
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[chosen]):
                for prompt in batch.column(0).to_pylist():
                    yield prompt or ""
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CondistillError(f"{path} is not valid parquet: {reason}; write or download it again") from error
