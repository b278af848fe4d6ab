"""Fréchet distances between the set of generated images and the reference images."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.frechet import Factor, distance_of_factors, factor_of_features, root_of_covariance
from condistill.evaluate.metrics.metric import EMPTY, Context, Metric, Samples, Score
from condistill.evaluate.metrics.moments import Moments
from condistill.evaluate.metrics.pairwise import Memo, blocks
from condistill.evaluate.metrics.rows import Rows

ENOUGH = 10_000
"""Images from which on the bias of a Fréchet distance in 2,048 features is small against differences of models."""

_ROOTS = Memo(3)
"""Of the covariances of the reference images, which all models share."""


class FrechetMetric(Metric):
    """The Fréchet distance in the feature that it needs, over the images of all seeds of a split; no spread."""

    direction = "lower"
    reference = "moments"
    aspect = "images"
    is_partial = True
    label: ClassVar[str]

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._rows = Rows()

    def update(self, samples: Samples) -> None:
        self._rows.add(samples, samples.features[self.needs[0]])

    def merge(self, other: FrechetMetric) -> None:
        self._rows.merge(other._rows)

    def compute(self) -> Score | None:
        """Return the distance; None for fewer than two images, or where it is not finite."""
        reference = self.context.reference.get(self.needs[0])
        if reference is None or min(len(self._rows), reference.moments.count) < 2:
            return None
        features = self._rows.ordered().values
        moments = Moments()
        for _, block in blocks(features):  # large blocks: each costs a matrix of D x D
            moments.update(block)
        if not (np.isfinite(moments.mean).all() and np.isfinite(reference.moments.mean).all()):
            return None
        factors = _factor(moments, features), _factor(reference.moments, reference.features)
        distance = distance_of_factors(moments.mean - reference.moments.mean, *factors)
        return Score(value=distance) if math.isfinite(distance) else None

    @classmethod
    def caution(cls, images: int) -> str:
        if images >= ENOUGH:
            return ""
        return (
            f"FID and other Fréchet distances of {images:,} images are too large by an amount that depends on their "
            f"number: compare them only with values over as many images, and trust differences from {ENOUGH:,} on."
        )


def _factor(moments: Moments, features: NDArray[Any] | None) -> Factor:
    """Return a factor of the covariance: of the features themselves where they are fewer than their dimensions."""
    if features is not None and len(features) <= features.shape[1]:
        return factor_of_features(features, moments.mean)
    return _ROOTS.get("roots", root_of_covariance, moments.covariance)
