"""Squared maximum mean discrepancy of generated and reference images (Gretton et al., JMLR 2012), with an interval."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.intervals import Interval, normal_interval
from condistill.evaluate.metrics.metric import EMPTY, Context, Metric, Samples, Score
from condistill.evaluate.metrics.pairwise import Floats, Kernel, Memo, sums_between, sums_within
from condistill.evaluate.metrics.rows import OrderedRows, Rows

_OF_REFERENCE = Memo()
"""Sums of kernels within the reference images, which all models share."""


class MmdMetric(Metric):
    """`scale` times the unbiased estimate (eq. 3), so that its expectation does not depend on the number of images.

    The interval is that of a jackknife: the prompts of the generated images and the reference images are left out one
    by one. It takes the two sets as independent, so it is too wide where the reference images are the teacher's of
    the same prompts. A value below 0 means that no difference is seen.
    """

    direction = "lower"
    reference = "features"
    aspect = "images"
    is_partial = True
    scale: ClassVar[float] = 1.0

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._rows = Rows()

    @staticmethod
    @abstractmethod
    def kernel(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the kernel `[R, C]` of features `[R, D]` and `[C, D]`; a constant that is added to it cancels."""

    def update(self, samples: Samples) -> None:
        self._rows.add(samples, samples.features[self.needs[0]])

    def merge(self, other: MmdMetric) -> None:
        self._rows.merge(other._rows)

    def compute(self) -> Score | None:
        """Return the estimate; None for fewer than two images, or where it is not finite."""
        reference = self.context.reference[self.needs[0]].features if self.context.reference else None
        if reference is None or min(len(self._rows), len(reference)) < 2:
            return None
        value, interval = self._estimate(self._rows.ordered(), reference)
        if not math.isfinite(value):
            return None
        low, high = (self.scale * end for end in interval) if interval else (None, None)
        return Score(value=self.scale * value, low=low, high=high)

    def _estimate(self, rows: OrderedRows, reference: Floats) -> tuple[float, Interval | None]:
        """Return the estimate and its interval; no interval for fewer than three prompts or reference images."""
        of_reference = _OF_REFERENCE.get(self.name, lambda features: sums_within(features, self.kernel), reference)
        own = sums_within(rows.values, self.kernel)
        across, back = sums_between(rows.values, reference, self.kernel)
        n, m, clusters = len(own), len(of_reference), rows.clusters
        terms = (
            own.sum() / (n * (n - 1)),
            of_reference.sum() / (m * (m - 1)),
            across.sum() / (n * m),
        )
        value = terms[0] + terms[1] - 2 * terms[2]
        sizes = np.bincount(clusters)
        if min(len(sizes), m) < 3:
            return float(value), None
        inside = _sums_inside(rows.values, clusters, sizes, self.kernel)
        kept, left = n - sizes, own.sum() - 2 * np.bincount(clusters, own) + inside
        without_prompt = left / (kept * (kept - 1)) - 2 * (across.sum() - np.bincount(clusters, across)) / (kept * m)
        without_reference = (of_reference.sum() - 2 * of_reference) / ((m - 1) * (m - 2)) - 2 * (
            across.sum() - back
        ) / (n * (m - 1))
        variance = _jackknife_variance(without_prompt) + _jackknife_variance(without_reference)
        return float(value), normal_interval(float(value), variance, min(len(sizes), m) - 1)


def _sums_inside(
    features: Floats, clusters: NDArray[np.int64], sizes: NDArray[np.int64], kernel: Kernel
) -> NDArray[np.float64]:
    """Return for each cluster the sum of the kernel over pairs of different rows of it."""
    sums = np.zeros(len(sizes))
    for cluster in np.flatnonzero(sizes > 1):
        sums[cluster] = sums_within(features[clusters == cluster], kernel).sum()
    return sums


def _jackknife_variance(without: NDArray[np.float64]) -> float:
    """Return the variance of an estimate from its values without each of the C observations `[C]`."""
    count = len(without)
    return float((count - 1) / count * ((without - without.mean()) ** 2).sum())
