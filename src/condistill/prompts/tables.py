"""Prompts of csv, jsonl and parquet files, as streams."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from condistill.errors import CondistillError
from condistill.prompts.columns import LISTS, TEXT, Column, check_header, choose_column, peek
from condistill.prompts.lines import read_ended_lines
from condistill.prompts.text import shown, shown_names

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_PARQUET_ROWS = 8192
Table = tuple[str, Iterator[str]]
"""The name of the column that is read, and its prompts."""


def read_csv(path: Path, column: str | None) -> Table:
    """Return the column and the prompts of a csv file; commas, semicolons, tabs or vertical bars separate its fields.

    Raises:
        CondistillError: the file has no such column, or its separator is not clear. Reading raises it for other
            mistakes.
    """
    lines = read_ended_lines(path)
    head: list[str] = []
    delimiter = None
    for line in lines:
        head.append(line)
        if declared := re.fullmatch(r'(?i:"?sep=(.)"?\n)', line):  # written for Excel
            delimiter, head[-1] = declared[1], "\n"
        elif line.strip():
            break
    else:
        raise CondistillError(f"{path} is empty; write a header line such as `prompt`, and prompts below it")
    delimiter = delimiter or _find_delimiter(path, head[-1], column)
    rows = csv.reader(chain(head, lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        header = next((row for row in rows if any(name.strip() for name in row)), [])
    except csv.Error as error:
        raise _not_csv(path, error, len(head)) from error
    names = [name.strip() for name in header]
    if names and all(re.fullmatch("'.*'", name) for name in names):
        raise CondistillError(
            f'the columns of {path} are in single quotes ({shown_names(names)}); use double quotes (")'
        )
    chosen = choose_column(path, column, [Column(name, TEXT) for name in names])
    if column is None:
        check_header(path, chosen)
    return chosen, _csv_prompts(path, rows, names, names.index(chosen), delimiter)


def _find_delimiter(path: Path, header: str, column: str | None) -> str:
    """Return the character that separates the columns of a header."""
    found: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True))
        except csv.Error:  # with this separator, a field is too long
            continue
        if len(names) > 1:
            found[delimiter] = [name.strip() for name in names]
    if len(found) > 1 and column is not None:
        found = {delimiter: names for delimiter, names in found.items() if column in names} or found
    if len(found) > 1:
        listed = " or ".join(f"{_DELIMITERS[delimiter]} ({delimiter!r})" for delimiter in found)
        raise CondistillError(
            f"the columns of {path} may be separated by {listed}; its first line is {shown(header.strip())}: name the "
            "column of the prompts with `column`, or write a header line with one kind of separator"
        )
    return next(iter(found), ",")


def _csv_prompts(path: Path, rows: Any, names: Sequence[str], position: int, delimiter: str) -> Iterator[str]:
    """Yield the field at `position` of every row that is not blank.

    Args:
        rows: the `csv.reader` after the header.
    """
    width, line = len(names), rows.line_num
    try:
        for row in rows:
            line = rows.line_num
            if len(row) == width:
                yield row[position]
            elif any(field.strip() for field in row):
                separator = _DELIMITERS.get(delimiter, delimiter)
                advice = f'put a field that contains a {separator} in quotes (")'
                if len(row) < width:
                    advice = f"each row needs a field, which may be empty, for every column ({shown_names(names)})"
                raise CondistillError(
                    f"{path} has {_count(len(row), 'field')} on line {line} and {_count(width, 'column')}; {advice}"
                )
    except csv.Error as error:
        raise _not_csv(path, error, line + 1) from error


def _not_csv(path: Path, error: csv.Error, line: int) -> CondistillError:
    """Return the error for a row that csv does not allow, which starts on `line`."""
    advice = "correct that row; a quote within quotes is written twice"
    if "limit" in str(error) or "end of data" in str(error):
        advice = 'close the quote (") that was opened there, or shorten the field'
    return CondistillError(f"{path} is not valid csv: {error}, in the row that starts on line {line}; {advice}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def read_jsonl(path: Path, column: str | None) -> Table:
    """Return the column and the prompts of a file with one JSON object per line.

    Raises:
        CondistillError: the first objects have no such key. Reading raises it for other mistakes.
    """
    first, records = peek(_records(path))
    if not first:
        next(records, None)  # raises the error of the first line
        raise CondistillError(f'{path} is empty; write lines such as {{"prompt": "a cat"}}')
    values: dict[str, object] = {}
    """The first value of each key that is not null, of records that have all keys before."""
    for _, record in first:
        if values.keys() <= record.keys():
            values |= {key: value for key, value in record.items() if values.get(key) is None}
    chosen = choose_column(path, column, [Column(key, _json_kind(value)) for key, value in values.items()])
    return chosen, _json_prompts(path, records, chosen)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON object of each line, with the number of the line."""
    for number, line in enumerate(read_ended_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CondistillError(f"line {number} of {path} is not JSON: {error}; correct or delete it") from error
        if not isinstance(record, dict):
            raise CondistillError(
                f'line {number} of {path} is not a JSON object; write lines such as {{"prompt": "a cat"}}'
            )
        yield number, record


def _json_kind(value: object) -> str:
    """Return the kind of a column with this value."""
    if isinstance(value, list):
        return LISTS if all(isinstance(item, str | None) for item in value) else "lists"
    if isinstance(value, str | None):
        return TEXT
    return {bool: "true or false", dict: "objects"}.get(type(value), "numbers")


def _json_prompts(path: Path, records: Iterator[tuple[int, dict[str, Any]]], key: str) -> Iterator[str]:
    """Yield the text of every record, or each text of its list."""
    for number, record in records:
        if key not in record:
            raise CondistillError(
                f"line {number} of {path} has no key {shown(key)}; its keys: {shown_names([*record]) or 'none'}"
            )
        value = record[key]
        if isinstance(value, str):
            yield value
        elif value is None:
            yield ""
        elif _json_kind(value) == LISTS:
            yield from (text or "" for text in value)
        else:
            raise CondistillError(
                f"{shown(key)} on line {number} of {path} is not text: {shown(json.dumps(value))[1:-1]}; "
                "put it in quotes"
            )


def read_parquet(path: Path, column: str | None) -> Table:
    """Return the column and the prompts of a parquet file.

    Raises:
        CondistillError: the file is not valid, or has no such column. Reading raises it for other mistakes.
    """
    with _parquet_errors(path):
        file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        columns = [Column(field.name, _arrow_kind(field.type)) for field in file.schema_arrow]
    chosen = choose_column(path, column, columns)
    return chosen, _parquet_prompts(path, file, chosen)


def _parquet_prompts(path: Path, file: pq.ParquetFile, name: str) -> Iterator[str]:
    with _parquet_errors(path), file:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[name]):
            column = batch.column(name)
            has_lists = _arrow_kind(column.type) == LISTS
            for value in column.to_pylist():
                if has_lists:
                    yield from (text or "" for text in value or ())
                else:
                    yield value or ""


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Report what pyarrow raises for a file that it cannot read."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = shown(" ".join(str(error).split()), limit=300)[1:-1]
        raise CondistillError(f"{path} is not valid parquet: {reason}; write or download it again") from error


def _arrow_kind(data_type: pa.DataType) -> str:
    """Return the kind of a column of this type."""
    if _is_text(data_type):
        return TEXT
    is_list = any(check(data_type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))
    if is_list and _is_text(data_type.value_type):
        return LISTS
    name = str(data_type)
    return name if len(name) <= 60 else f"{name[:60]}…"


def _is_text(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    is_string = pa.types.is_string(data_type) or pa.types.is_large_string(data_type)
    return bool(is_string or pa.types.is_string_view(data_type))
