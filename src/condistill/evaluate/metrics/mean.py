"""Metrics that are a mean of one value per image."""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from typing import Any, TypeVar

from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import EMPTY, PERCENT, Context, Metric, Samples, Score

AnyMean = TypeVar("AnyMean", bound="MeanMetric")


class MeanMetric(Metric):
    """The mean over images and evaluation seeds; its spread is the standard deviation over the seeds."""

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._sums: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    @abstractmethod
    def per_image(self, samples: Samples) -> NDArray[Any]:
        """Return one value per image, `[N]`."""

    def update(self, samples: Samples) -> None:
        if len(samples):
            self._add(samples.seed, float(self.per_image(samples).sum()), len(samples))

    def merge(self: AnyMean, other: AnyMean) -> None:
        for seed, total in other._sums.items():
            self._add(seed, total, other._counts[seed])

    def compute(self) -> Score | None:
        """Return the mean of the seeds' means, so that every seed counts alike."""
        means = [total / self._counts[seed] for seed, total in self._sums.items()]
        if not means or not all(map(math.isfinite, means)):
            return None
        spread = statistics.stdev(means) if len(means) > 1 else None
        return Score(value=statistics.fmean(means), spread=spread)

    def _add(self, seed: int, total: float, count: int) -> None:
        self._sums[seed] = self._sums.get(seed, 0.0) + total
        self._counts[seed] = self._counts.get(seed, 0) + count


class ShareMetric(MeanMetric):
    """The share of images for which the feature of the metric's own name, bool `[N]`, is true."""

    notation = PERCENT
    direction = "higher"
    upper_bound = 1.0

    def per_image(self, samples: Samples) -> NDArray[Any]:
        return samples.features[self.name]

    @classmethod
    def sampling_error(cls, value: float, images: int) -> float | None:
        """Return the standard error of a share: sqrt(p (1 - p) / n)."""
        return math.sqrt(value * (1 - value) / images) if images else None
