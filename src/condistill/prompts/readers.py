"""Read prompts from text files and tables as a stream, so that a file of any size fits in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from condistill.config.sections import MINIATURE
from condistill.errors import CondistillError
from condistill.prompts.columns import refuse_file_names
from condistill.prompts.lines import read_lines
from condistill.prompts.tables import read_csv, read_jsonl, read_parquet
from condistill.prompts.text import clean_prompt, shown

TABULAR = (".csv", ".jsonl", ".parquet")
EXTENSIONS = (".txt", *TABULAR)
_TABLES = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}

_OTHER_FORMATS = {
    r'\{\s*("|$)|\[\s*([{"]|$)': "JSON, whose extension is .jsonl if each line has an object",
    "version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces with the file",
    "%PDF-": "a PDF document",
    r"\{\\rtf": "an RTF document",
    "(?i:<!doctype html|<html)": "an HTML page",
}
"""Starts of files that are named .txt by mistake, as regular expressions."""


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where the prompts of a file are, and what the first of them looks like."""

    path: str
    column: str | None
    """The column that is read; None where the file has no columns."""
    first_prompt: str
    """The first prompt that is not empty; empty if there is none."""

    def __str__(self) -> str:
        column = "" if self.column is None else f", column {shown(self.column)}"
        return f"{Path(self.path).name}{column}: the first prompt is {shown(self.first_prompt)}"


def describe_source(path: Path | str, *, column: str | None = None) -> PromptSource:
    """Return which column of a file is read, and its first prompt.

    Raises:
        CondistillError: see `read_prompts`.
    """
    chosen, prompts = _open(path, column)
    first = next((cleaned for prompt in prompts if (cleaned := clean_prompt(prompt)[0])), "")
    return PromptSource(str(path), chosen, first)


def read_prompts(path: Path | str, *, column: str | None = None) -> Iterator[str]:
    """Return an iterator over the prompts of a txt, csv, jsonl or parquet file.

    A txt file has one prompt per line. A null in a table is an empty prompt. If a row of a table holds a list of texts,
    each is a prompt.

    Args:
        path: a file, or `miniature` for the captions of the embedded miniature world.
        column: the column of a table that contains the prompts. Default: the only text column (csv: the only column).

    Raises:
        CondistillError: the file does not exist, has another extension, or its content does not match its extension.
    """
    return _open(path, column)[1]


def is_tabular(path: Path | str) -> bool:
    """Return whether a file is a table with columns."""
    return str(path) != MINIATURE and Path(path).suffix.lower() in TABULAR


def check_column(files: Sequence[Path | str], column: str | None) -> None:
    """Check that a column is only given if one of several files has columns.

    Raises:
        CondistillError: it applies to none of them.
    """
    if column is not None and not any(map(is_tabular, files)):
        raise CondistillError(
            f"column {shown(column)} applies to none of {', '.join(Path(file).name for file in files)}: only "
            f"{', '.join(TABULAR)} files have columns; leave the column out"
        )


def _open(path: Path | str, column: str | None) -> tuple[str | None, Iterator[str]]:
    """Return the column that is read, if the file has columns, and an iterator over the prompts."""
    if str(path) == MINIATURE:
        from condistill.miniature.world import all_captions

        return None, iter(all_captions())
    path = Path(path)
    _check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return None, refuse_file_names(_refuse_other_formats(read_lines(path), path), str(path))
    if suffix not in _TABLES:
        raise CondistillError(f"{path} has the extension {path.suffix!r}; valid: {', '.join(EXTENSIONS)}")
    chosen, prompts = _TABLES[suffix](path, column)
    return chosen, prompts if column is not None else refuse_file_names(prompts, f"column {shown(chosen)} of {path}")


def _refuse_other_formats(lines: Iterator[str], path: Path) -> Iterator[str]:
    """Yield lines, unless the first that is not blank shows that the file is no list of prompts."""
    for line in lines:
        kind = next((kind for start, kind in _OTHER_FORMATS.items() if re.match(start, line.strip())), None)
        if kind is not None:
            raise CondistillError(f"{path} is {kind}; a txt file has one prompt on each line")
        yield line
        if line.strip():
            break
    yield from lines


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise CondistillError(f"{path} is a folder; name its prompt files instead")
        if not path.exists():
            raise CondistillError(f"there is no prompt file {path}; a relative path starts at the folder of the recipe")
        if not path.is_file():
            raise CondistillError(f"{path} is not a regular file; write the prompts to a file")
    except OSError as error:
        raise CondistillError(f"the prompt file {path} cannot be read: {error.strerror or error}") from error
