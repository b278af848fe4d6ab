"""The Fréchet distance between generated and true images, in the features of the classifier."""

from __future__ import annotations

import math

import numpy as np

from condistill.evaluate.metrics.frechet import frechet_distance
from condistill.evaluate.metrics.metric import (
    CLASSIFIER_FEATURES,
    EMPTY,
    REFERENCE_FEATURES,
    Context,
    Metric,
    Samples,
    Score,
    register_metric,
)
from condistill.evaluate.metrics.moments import Moments


@register_metric
class FrechetClassifier(Metric):
    """Fréchet distance over the images of all seeds of a split to true images of the same prompts."""

    name = "frechet_classifier"
    label = "Fréchet distance"
    description = "distance to true images of the same prompts, in the features of the classifier"
    direction = "lower"
    needs = (CLASSIFIER_FEATURES, REFERENCE_FEATURES)
    aspect = "images"
    is_partial = True

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._generated, self._true = Moments(), Moments()

    def update(self, samples: Samples) -> None:
        self._generated.update(samples.features[CLASSIFIER_FEATURES])
        self._true.update(samples.features[REFERENCE_FEATURES])

    def merge(self, other: FrechetClassifier) -> None:
        self._generated.merge(other._generated)
        self._true.merge(other._true)

    def compute(self) -> Score | None:
        """Return the distance, which has no spread; None with fewer than two images or where it is not finite."""
        moments = (self._generated, self._true)
        if self._generated.count < 2 or not all(np.isfinite(each.mean).all() for each in moments):
            return None
        distance = frechet_distance(*moments)
        return Score(value=distance) if math.isfinite(distance) else None
