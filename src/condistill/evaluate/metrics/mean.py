"""Metrics that are a mean of one value per image."""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.intervals import Interval, mean_interval, seed_weights, share_interval
from condistill.evaluate.metrics.metric import EMPTY, PERCENT, Context, ImageKey, Metric, Samples, Score
from condistill.evaluate.metrics.rows import OrderedRows, Rows

AnyMean = TypeVar("AnyMean", bound="MeanMetric")


class MeanMetric(Metric):
    """The mean over images and evaluation seeds, and its 95 % interval over prompts.

    Its spread is the standard deviation over the seeds.
    """

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._rows = Rows()

    @abstractmethod
    def per_image(self, samples: Samples) -> NDArray[Any]:
        """Return one value per image, `[N]`."""

    def update(self, samples: Samples) -> None:
        if len(samples):
            self._rows.add(samples, np.asarray(self.per_image(samples), np.float64))

    def merge(self: AnyMean, other: AnyMean) -> None:
        self._rows.merge(other._rows)

    def compute(self) -> Score | None:
        """Return the mean of the seeds' means, so that every seed counts alike."""
        if not len(self._rows):
            return None
        rows = self._rows.ordered()
        return mean_score(rows, self.interval(rows, self.context.seed))

    def values(self) -> dict[ImageKey, float]:
        return image_values(self._rows.ordered()) if len(self._rows) else {}

    @classmethod
    def interval(cls, rows: OrderedRows, seed: int) -> Interval | None:
        """Return the 95 % interval of the mean of rows over prompts; None where there are too few.

        Args:
            seed: of the bootstrap.
        """
        return mean_interval(rows.values, seed_weights(rows.seeds), rows.clusters, seed=seed)


class FeatureMean(MeanMetric):
    """The mean of a feature that is one number per image, `[N]`: the first that the metric needs."""

    def per_image(self, samples: Samples) -> NDArray[Any]:
        return samples.features[self.needs[0]]


class ShareMetric(MeanMetric):
    """The share of images for which the feature of the metric's own name, bool `[N]`, is true."""

    notation = PERCENT
    direction = "higher"
    upper_bound = 1.0

    def per_image(self, samples: Samples) -> NDArray[Any]:
        return samples.features[self.name]

    @classmethod
    def interval(cls, rows: OrderedRows, seed: int) -> Interval | None:  # noqa: ARG003
        return share_interval(rows.values, seed_weights(rows.seeds), rows.clusters)

    @classmethod
    def sampling_error(cls, value: float, images: int) -> float | None:
        """Return the standard error of a share: sqrt(p (1 - p) / n)."""
        return math.sqrt(value * (1 - value) / images) if images else None


def mean_score(rows: OrderedRows, interval: Interval | None) -> Score | None:
    """Return the mean of values `[N]` over seeds and images, with its spread; None where a value is not finite."""
    means = [float(rows.values[rows.seeds == seed].mean()) for seed in np.unique(rows.seeds)]
    if not all(map(math.isfinite, means)):
        return None
    spread = statistics.stdev(means) if len(means) > 1 else None
    value = statistics.fmean(means)
    if interval is None:
        return Score(value=value, spread=spread)
    return Score(value=value, spread=spread, low=min(interval[0], value), high=max(interval[1], value))


def image_values(rows: OrderedRows) -> dict[ImageKey, float]:
    """Return the value of each image by its seed and number; images without a number are left out."""
    return {key: float(value) for key, value in zip(rows.keys, rows.values, strict=True) if key is not None}


def score_of_values(
    metric: type[Metric], values: Mapping[ImageKey, float], prompts: Mapping[ImageKey, str], *, seed: int
) -> Score | None:
    """Return the score of a metric over some images, such as those of a concept; None without an image.

    Args:
        metric: of the values, which `Metric.values` returned.
        prompts: the prompt of each image.
        seed: of the bootstrap.
    """
    if not values:
        return None
    keys = sorted(values)
    rows = OrderedRows(
        values=np.array([values[key] for key in keys], np.float64),
        seeds=np.array([key[0] for key in keys], np.int64),
        numbers=[key[1] for key in keys],
        prompts=[prompts[key] for key in keys],
    )
    kind = metric if issubclass(metric, MeanMetric) else MeanMetric
    return mean_score(rows, kind.interval(rows, seed))
