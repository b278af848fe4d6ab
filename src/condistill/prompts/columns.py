"""The column of a table that contains the prompts: the one that is named, or the only one that can."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from condistill.errors import CondistillError, nearest
from condistill.prompts.text import shown, shown_names

Item = TypeVar("Item")

TEXT = "text"
LISTS = "lists of texts"
_PEEKED = 20
_USUAL_WORDS = re.compile(
    "prompts?|captions?|texts?|descriptions?|titles?|labels?|sentences?|query|queries|instructions?|names?|class|tags?|alt"
)
_FILE_NAME = re.compile(
    r"(?:https?://\S+|\S+\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|heic|svg|mp4|webm|npy|npz|pt|safetensors|txt|json|tar))",
    re.IGNORECASE,
)


class Column(NamedTuple):
    """A column of a table."""

    name: str
    kind: str
    """`TEXT`, `LISTS`, or another type, such as `binary`."""

    @property
    def has_texts(self) -> bool:
        return self.kind in (TEXT, LISTS)


def choose_column(path: Path, wanted: str | None, columns: Sequence[Column]) -> str:
    """Return the name of the column to read: `wanted`, or the only column of texts if it is None.

    A column without a usual name for prompts is not chosen in place of one that has such a name and is not text.

    Raises:
        CondistillError: there is no such column, or more than one.
    """
    names = [column.name for column in columns]
    texts = [column.name for column in columns if column.has_texts]
    if wanted is None and len(texts) == 1 and (_is_usual(texts[0]) or not any(map(_is_usual, names))):
        wanted = texts[0]
    if wanted is None:
        found = {0: "no text column", 1: "no text column with a usual name"}.get(
            len(texts), "more than one text column"
        )
        advice = "name one with `column`" if texts else "write the prompts as text in a column of their own"
        raise CondistillError(f"{path} has {found} ({_listed(columns)}); {advice}")
    if wanted not in names:
        are_plain = shown_names(names) == ", ".join(names)
        suggestion = nearest(wanted, names) if names and are_plain else ""
        all_names = "" if are_plain and ", ".join(names) in suggestion else f" ({_listed(columns)})"
        raise CondistillError(f"{path} has no column {shown(wanted)}{all_names}{suggestion}")
    if names.count(wanted) > 1:
        raise CondistillError(
            f"{path} has more than one column {shown(wanted)} ({shown_names(names)}); rename all but one"
        )
    if wanted not in texts:
        kind = next(column.kind for column in columns if column.name == wanted)
        raise CondistillError(
            f"column {shown(wanted)} of {path} is not text but {kind}; text columns: {shown_names(texts) or 'none'}"
        )
    return wanted


def _listed(columns: Sequence[Column]) -> str:
    """Return the names of columns, with the types of those that are not plain text."""
    entries = [
        shown_names([column.name]) + ("" if column.kind == TEXT else f": {column.kind}") for column in columns[:_PEEKED]
    ]
    more = f" and {len(columns) - _PEEKED:,} more" if len(columns) > _PEEKED else ""
    return ", ".join(entries) + more or "no columns"


def check_header(path: Path, name: str) -> None:
    """Check that the header of a file with one column is a name, and not the first prompt.

    Raises:
        CondistillError: it is no usual name.
    """
    if not _is_usual(name):
        raise CondistillError(
            f"the first line of {path} is {shown(name)}, which is not a usual name for a column of prompts; if it is "
            "the name of the column, give it as `column`; if it is a prompt, write a header line such as `prompt` "
            "above it"
        )


def _is_usual(name: str) -> bool:
    """Return whether a name is usual for a column of prompts: `caption_en`, but not `a caption` or `id^caption`."""
    usual = [bool(_USUAL_WORDS.fullmatch(word)) for word in re.split(r"[\s_\-.()\d]+", name.lower()) if word]
    return any(usual) and (all(usual) or not re.search(r"\s", name))


def refuse_file_names(prompts: Iterator[str], place: str) -> Iterator[str]:
    """Return an iterator over the same prompts, after a look at the first of them.

    Args:
        place: the column and the file, for the message.

    Raises:
        CondistillError: they are names of files or addresses.
    """
    first, prompts = peek(prompts)
    texts = [prompt.strip() for prompt in first if prompt.strip()]
    if texts and all(map(_FILE_NAME.fullmatch, texts)):
        raise CondistillError(
            f"{place} has names of files, such as {shown(texts[0])}, and no prompts; name the column of the prompts "
            "with `column`, or give another file"
        )
    return prompts


def peek(items: Iterator[Item]) -> tuple[list[Item], Iterator[Item]]:
    """Return the first items, and an iterator over all; an error is raised again where the mistake is."""
    first: list[Item] = []
    failure: list[CondistillError] = []
    try:
        first.extend(islice(items, _PEEKED))
    except CondistillError as error:
        failure.append(error)
    return first, chain(first, map(_raise, failure), items)


def _raise(error: CondistillError) -> Any:
    raise error
