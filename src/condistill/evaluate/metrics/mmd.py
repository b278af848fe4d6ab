"""Squared maximum mean discrepancy of generated and reference images (Gretton et al., JMLR 2012), with an interval."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.intervals import Interval, normal_interval
from condistill.evaluate.metrics.metric import EMPTY, Context, Metric, Samples, Score
from condistill.evaluate.metrics.pairwise import Floats, Memo, sums_between, sums_within
from condistill.evaluate.metrics.rows import OrderedRows, Rows

_OF_REFERENCE = Memo()
"""Sums of kernels within the reference images, which all models share."""


class MmdMetric(Metric):
    """`scale` times the unbiased estimate (eq. 3), so that its expectation does not depend on the number of images.

    Pairs of images of one prompt are left out, since they are not independent: several of one model, or a student's and
    its teacher's where the teacher's images are the reference. The interval is that of a jackknife, which leaves out
    one prompt, or one reference image without a prompt, after the other. Below 0 no difference is seen.
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
        value, interval = self._estimate(self._rows.ordered(), reference, self.context.reference[self.needs[0]].prompts)
        if not math.isfinite(value):
            return None
        low, high = (self.scale * end for end in interval) if interval else (None, None)
        return Score(value=self.scale * value, low=low, high=high)

    def _estimate(
        self, rows: OrderedRows, reference: Floats, prompts: Sequence[str] | None
    ) -> tuple[float, Interval | None]:
        """Return the estimate, and its interval; not finite where all pairs are of one prompt."""
        of_one, of_other = _groups(rows.prompts, prompts, len(reference))

        def within(features: Floats, groups: NDArray[np.int64]) -> NDArray[np.float64]:
            return sums_within(features, groups, self.kernel)

        own = _Pairs.within(within(rows.values, of_one), of_one)
        others = _Pairs.within(_OF_REFERENCE.get(self.name, within, reference, of_other), of_other)
        across = _Pairs.between(sums_between(rows.values, reference, (of_one, of_other), self.kernel), of_one, of_other)
        value = own.mean() + others.mean() - 2 * across.mean()
        count = 1 + int(max(of_one.max(), of_other.max()))
        without = own.without(count) + others.without(count) - 2 * across.without(count)
        has_prompt = np.isin(np.arange(count), of_one)
        parts = [part for part in (without[has_prompt], without[~has_prompt]) if len(part)]
        if min(map(len, parts)) < 3 or not np.isfinite(without).all():
            return value, None
        variance = sum(map(_jackknife_variance, parts))
        return value, normal_interval(value, variance, min(map(len, parts)) - 1)


@dataclass(frozen=True)
class _Pairs:
    """The sum of a kernel over pairs of images that are not of one group, and what of it belongs to each image."""

    sums: NDArray[np.float64]
    """By image, over its pairs; each pair belongs to two images."""
    groups: NDArray[np.int64]
    partners: NDArray[np.float64]
    """By image, the number of its pairs."""

    @classmethod
    def within(cls, sums: NDArray[np.float64], groups: NDArray[np.int64]) -> _Pairs:
        """Return the pairs of one set."""
        return cls(sums, groups, len(groups) - np.bincount(groups)[groups].astype(np.float64))

    @classmethod
    def between(
        cls,
        sums: tuple[NDArray[np.float64], NDArray[np.float64]],
        of_one: NDArray[np.int64],
        of_other: NDArray[np.int64],
    ) -> _Pairs:
        """Return the pairs of an image of one set with an image of another."""
        count = 1 + int(max(of_one.max(), of_other.max()))
        sizes = [np.bincount(groups, minlength=count) for groups in (of_one, of_other)]
        partners = np.concatenate([len(of_other) - sizes[1][of_one], len(of_one) - sizes[0][of_other]])
        return cls(np.concatenate(sums), np.concatenate([of_one, of_other]), partners.astype(np.float64))

    def mean(self) -> float:
        """Return the mean kernel of a pair; not finite without a pair."""
        with np.errstate(invalid="ignore"):
            return float(self.sums.sum() / self.partners.sum())

    def without(self, count: int) -> NDArray[np.float64]:
        """Return the mean without the images of each of `count` groups, `[count]`."""
        sums, partners = (np.bincount(self.groups, each, minlength=count) for each in (self.sums, self.partners))
        with np.errstate(invalid="ignore", divide="ignore"):
            means: NDArray[np.float64] = (self.sums.sum() - 2 * sums) / (self.partners.sum() - 2 * partners)
        return means


def _groups(
    prompts: Sequence[str], of_reference: Sequence[str] | None, references: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the group of each generated and of each reference image: its prompt, or itself where it has none."""
    known: dict[object, int] = {}
    names: Sequence[object] = range(references) if of_reference is None else of_reference
    one, other = ([known.setdefault(name, len(known)) for name in each] for each in (prompts, names))
    return np.array(one, np.int64), np.array(other, np.int64)


def _jackknife_variance(without: NDArray[np.float64]) -> float:
    """Return the variance of an estimate from its values without each of the C observations `[C]`."""
    count = len(without)
    return float((count - 1) / count * ((without - without.mean()) ** 2).sum())
