"""All pairs of two sets of features, in blocks, so that memory does not grow with the number of pairs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Kernel = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Features `[R, D]` and `[C, D]` to values of the kernel `[R, C]`."""
Result = TypeVar("Result")

BLOCK = 1024
"""Rows of either set that are compared at once: 8 MiB of float64 per block of pairs."""


def squared_distances(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared Euclidean distances `[R, C]` of features `[R, D]` and `[C, D]`."""
    distances: NDArray[np.float64] = (-2 * first) @ second.T
    distances += (first**2).sum(1)[:, None]
    distances += (second**2).sum(1)
    np.maximum(distances, 0, out=distances)
    return distances


def sums_within(features: Floats, groups: NDArray[np.int64], kernel: Kernel) -> NDArray[np.float64]:
    """Return for each of the features `[N, D]` the sum of the kernel over the features of other groups, `[N]`.

    Args:
        groups: the number of each row's group, `[N]`.
    """
    sums = np.zeros(len(features))
    for rows, first in blocks(features):
        for columns, second in blocks(features, rows.start):
            values = _without_groups(kernel(first, second), groups[rows], groups[columns])
            sums[rows] += values.sum(1)
            if rows != columns:
                sums[columns] += values.sum(0)
    return sums


def sums_between(
    first: Floats, second: Floats, groups: tuple[NDArray[np.int64], NDArray[np.int64]], kernel: Kernel
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of the kernel over pairs of two sets that are not of one group, by row of either: `[N]`, `[M]`.

    Args:
        groups: the number of each row's group, of both sets.
    """
    of_first, of_second = np.zeros(len(first)), np.zeros(len(second))
    for rows, one in blocks(first):
        for columns, other in blocks(second):
            values = _without_groups(kernel(one, other), groups[0][rows], groups[1][columns])
            of_first[rows] += values.sum(1)
            of_second[columns] += values.sum(0)
    return of_first, of_second


def _without_groups(
    values: NDArray[np.float64], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Set values `[R, C]` of pairs of one group to 0, and return them."""
    if np.isin(rows, columns).any():  # seldom: most blocks have no group in common
        values[rows[:, None] == columns] = 0
    return values


def blocks(features: Floats, start: int = 0) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield features `[N, D]` in blocks of rows, as float64, each with its place."""
    for first in range(start, len(features), BLOCK):
        rows = slice(first, min(first + BLOCK, len(features)))
        yield rows, np.asarray(features[rows], np.float64)


class Memo:
    """Keeps the latest results of functions of arrays, since several metrics and models need the same.

    An entry is found by the content of the arrays, whichever objects hold it.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._results: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str, make: Callable[..., Result], *arrays: NDArray[Any]) -> Result:
        """Return `make(*arrays)`, computed at most once for a name and arrays that were given lately."""
        digest = hashlib.blake2b(name.encode(), digest_size=16)
        for array in arrays:
            digest.update(f"{array.shape} {array.dtype};".encode())
            for start in range(0, len(array), BLOCK):
                digest.update(array[start : start + BLOCK].tobytes())
        key = digest.hexdigest()
        if key not in self._results:
            self._results[key] = make(*arrays)
            if len(self._results) > self._size:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        result: Result = self._results[key]
        return result
