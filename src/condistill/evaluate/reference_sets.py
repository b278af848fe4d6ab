"""Reference sets of metrics: features of the teacher's images of each split, or of the user's reference images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.mapped import Order
from condistill.evaluate.metrics.metric import METRICS, ReferenceSet
from condistill.evaluate.metrics.moments import Moments
from condistill.evaluate.rounds import ALL, Round

_ROWS = 1024
"""Rows that are float64 at once."""


def compared_features() -> list[str]:
    """Return the features of reference images that some registered metric reads, each once."""
    return list(dict.fromkeys(kind.needs[0] for kind in METRICS.values() if kind.reference != "none"))


def moments_of(features: NDArray[Any]) -> Moments:
    """Return count, mean and covariance of features `[N, D]`, read piece by piece."""
    moments = Moments()
    for start in range(0, len(features), _ROWS):
        moments.update(np.asarray(features[start : start + _ROWS], np.float64))
    return moments


class TeacherSets(Mapping[str, Mapping[str, ReferenceSet]]):
    """By split, the sets of the teacher's images of the same prompts; each is computed when it is first needed."""

    def __init__(self, order: Order, rounds: Iterable[Round], features: Mapping[str, NDArray[Any]]) -> None:
        self._order = order
        self._splits = list(dict.fromkeys([*next(iter(rounds)).parts, ALL]))
        self._features = {name: features[name] for name in compared_features() if name in features}
        self._known: dict[str, dict[str, ReferenceSet]] = {}

    def __getitem__(self, split: str) -> Mapping[str, ReferenceSet]:
        if split not in self._splits:
            raise KeyError(split)
        if split not in self._known:
            rows = self._order.of_split(split)
            prompts = self._order.prompts[rows]
            self._known[split] = {
                name: ReferenceSet(moments_of(array[rows]), array[rows], prompts)
                for name, array in self._features.items()
            }
        return self._known[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)
