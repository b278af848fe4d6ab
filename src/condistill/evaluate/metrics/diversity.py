"""How much the images of one prompt differ, in DINOv2 features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.cosine import unit_rows
from condistill.evaluate.metrics.intervals import mean_interval, seed_weights
from condistill.evaluate.metrics.mean import image_values, mean_score
from condistill.evaluate.metrics.metric import DINOV2, EMPTY, Context, ImageKey, Metric, Samples, Score, register_metric
from condistill.evaluate.metrics.rows import OrderedRows, Rows


@register_metric
class Diversity(Metric):
    """The mean over prompts of the mean of 1 minus the cosine over all pairs of images of the prompt.

    Few-step students lose diversity. Broken images can be diverse too, so it says nothing alone. It has the scale of
    the DINOv2 distance to the teacher.
    """

    name = "diversity"
    label = "Diversity"
    description = "mean distance of two images of one prompt from different noise, in DINOv2 features"
    direction = "higher"
    needs = (DINOV2,)
    aspect = "variety"
    is_partial = True
    over_seeds = True

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._rows = Rows()

    def update(self, samples: Samples) -> None:
        self._rows.add(samples, samples.features[DINOV2])

    def merge(self, other: Diversity) -> None:
        self._rows.merge(other._rows)

    def compute(self) -> Score | None:
        """Return the mean over prompts with its interval; None where no prompt has two images."""
        rows = self._by_prompt()
        if rows is None:
            return None
        weights = seed_weights(rows.seeds)
        return mean_score(rows, mean_interval(rows.values, weights, rows.clusters, seed=self.context.seed))

    def values(self) -> dict[ImageKey, float]:
        """Return the mean distance of each prompt, by the lowest seed and a number of its images."""
        rows = self._by_prompt()
        return {} if rows is None else image_values(rows)

    def _by_prompt(self) -> OrderedRows | None:
        """Return one row per prompt with two images or more."""
        if not len(self._rows):
            return None
        rows = self._rows.ordered()
        clusters = rows.clusters
        order = np.argsort(clusters, kind="stable")
        images_of = np.split(order, np.cumsum(np.bincount(clusters))[:-1])
        chosen = [images for images in images_of if len(images) > 1]
        if not chosen:
            return None
        return OrderedRows(
            values=np.array([mean_pairwise_distance(rows.values[images]) for images in chosen]),
            seeds=np.full(len(chosen), rows.seeds[0]),
            numbers=[rows.numbers[images[0]] for images in chosen],
            prompts=[rows.prompts[images[0]] for images in chosen],
        )


def mean_pairwise_distance(features: NDArray[np.float32]) -> float:
    """Return the mean of 1 minus the cosine over all pairs of different features `[N, D]`, for N >= 2."""
    units = unit_rows(features)
    deviations = units - units.mean(0)
    return float((deviations**2).sum() / (len(units) - 1))  # the variance is half the mean squared distance of pairs
