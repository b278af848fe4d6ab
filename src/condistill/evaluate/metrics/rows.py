"""Values or features of images that arrive in pieces and in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import ImageKey, Samples


@dataclass(frozen=True)
class OrderedRows:
    """Rows in an order that does not depend on how they arrived: by seed, number and prompt."""

    values: NDArray[Any]
    """`[N, ...]`."""
    seeds: NDArray[np.int64]
    """`[N]`."""
    numbers: Sequence[int | None]
    """The position of each row among all samples of its seed; None where it is not known."""
    prompts: Sequence[str]

    def with_values(self, values: NDArray[Any]) -> OrderedRows:
        """Return the same rows with other values."""
        return replace(self, values=values)

    @property
    def clusters(self) -> NDArray[np.int64]:
        """The number of each row's prompt, `[N]`: equal for the images of one prompt."""
        known: dict[str, int] = {}
        return np.array([known.setdefault(prompt, len(known)) for prompt in self.prompts], np.int64)

    @property
    def keys(self) -> list[ImageKey | None]:
        """Seed and number of every row; None where the number is not known."""
        return [
            None if number is None else (int(seed), number)
            for seed, number in zip(self.seeds, self.numbers, strict=True)
        ]


class Rows:
    """Rows of images with their seeds, numbers and prompts. It keeps the arrays that it is given, without a copy."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Samples, NDArray[Any]]] = []

    def add(self, samples: Samples, values: NDArray[Any]) -> None:
        """Add one row of `values` for each sample."""
        if len(samples):
            bare = Samples(samples.seed, samples.prompts, {}, samples.numbers)
            self._pieces.append((bare, values))

    def merge(self, other: Rows) -> None:
        """Add the rows of another instance."""
        self._pieces += other._pieces

    def __len__(self) -> int:
        return sum(len(samples) for samples, _ in self._pieces)

    def ordered(self) -> OrderedRows:
        """Return all rows in their order; needs at least one row."""
        seeds = [samples.seed for samples, _ in self._pieces for _ in samples.prompts]
        prompts = [prompt for samples, _ in self._pieces for prompt in samples.prompts]
        numbers: list[int | None] = []
        for samples, _ in self._pieces:
            numbers += map(int, samples.numbers) if len(samples.numbers) else [None] * len(samples)
        places = [
            (seed, -1 if n is None else n, prompt) for seed, n, prompt in zip(seeds, numbers, prompts, strict=True)
        ]
        order = sorted(range(len(places)), key=places.__getitem__)
        values = np.concatenate([values for _, values in self._pieces])
        return OrderedRows(
            values=values if order == list(range(len(order))) else values[order],
            seeds=np.array([seeds[row] for row in order], np.int64),
            numbers=[numbers[row] for row in order],
            prompts=[prompts[row] for row in order],
        )
