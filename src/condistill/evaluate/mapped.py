"""Features of all images of a model as arrays that are mapped from a file, so that they need no memory of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.batches import Arrays, BatchFiles
from condistill.evaluate.rounds import ALL, Round

ROWS_AT_ONCE = 128
"""Rows that are measured at once. Results do not depend on the batch size of generation, to the last digit."""


@dataclass(frozen=True)
class Piece:
    """Some rows of one split of one round."""

    split: str
    round_number: int
    rows: range
    """In the round."""
    start: int
    """The first of them in mapped arrays."""

    @property
    def mapped(self) -> slice:
        """Their place in mapped arrays."""
        return slice(self.start, self.start + len(self.rows))


class Order:
    """The order of all rows in mapped arrays: split by split and in each the rounds, so that a split is one slice."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self.rounds = rounds
        self._segments: list[Piece] = []
        self._splits: dict[str, slice] = {}
        start = 0
        for split in rounds[0].parts:
            begin = start
            for number, each in enumerate(rounds):
                rows = range(*each.splits[split].indices(len(each.prompts)))
                self._segments.append(Piece(split, number, rows, start))
                start += len(rows)
            self._splits[split] = slice(begin, start)
        self.count = start
        self._splits[ALL] = slice(0, start)

    @cached_property
    def prompts(self) -> list[str]:
        """The prompt of every row."""
        return [self.rounds[each.round_number].prompts[row] for each in self._segments for row in each.rows]

    def of_split(self, split: str) -> slice:
        """Return the place of a split in mapped arrays; `all` is everything."""
        return self._splits[split]

    def pieces(self) -> Iterator[Piece]:
        """Yield all rows, at most `ROWS_AT_ONCE` at a time."""
        for segment in self._segments:
            for offset in range(0, len(segment.rows), ROWS_AT_ONCE):
                rows = segment.rows[offset : offset + ROWS_AT_ONCE]
                yield Piece(segment.split, segment.round_number, rows, segment.start + offset)

    def place(self, round_number: int, row: int) -> int:
        """Return the place of one row of a round in mapped arrays."""
        ((place, _),) = self.places(round_number, range(row, row + 1))
        return int(place.start)

    def places(self, round_number: int, rows: range) -> Iterator[tuple[slice, slice]]:
        """Yield where parts of some rows of a round belong: their place in mapped arrays, and among the rows."""
        for segment in self._segments:
            first, last = max(rows.start, segment.rows.start), min(rows.stop, segment.rows.stop)
            if segment.round_number == round_number and first < last:
                start = segment.start + first - segment.rows.start
                yield slice(start, start + last - first), slice(first - rows.start, last - rows.start)


def map_features(folder: Path, order: Order, files: Mapping[str, BatchFiles]) -> Arrays:
    """Copy features from the files of their batches to one file per feature, and return them mapped from there.

    Args:
        folder: where the files of the features are made.
        files: of every network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapped: dict[str, NDArray[Any]] = {}
    for of_network in files.values():
        for number, each in enumerate(order.rounds):
            for rows, arrays in of_network.walk(each):
                for name, array in arrays.items():
                    if name not in mapped:
                        shape = (order.count, *array.shape[1:])
                        path = folder / f"{name}.npy"
                        mapped[name] = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=shape)
                    for place, inside in order.places(number, rows):
                        mapped[name][place] = array[inside]
    return mapped
