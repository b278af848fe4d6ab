"""Random samples with every feature that a metric can need, and one that tests of metrics use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import (
    ALL_CORRECT,
    CLASSIFIER_FEATURES,
    EMPTY,
    IMAGES,
    LATENTS,
    REFERENCE_FEATURES,
    TEACHER_LATENTS,
    Context,
    Metric,
    Samples,
    Score,
)
from condistill.miniature.world import ATTRIBUTES


def random_samples(seed: int, count: int) -> Samples:
    """Return samples of one evaluation seed, a function of the seed."""
    rng = np.random.Generator(np.random.Philox(seed))
    features = {
        LATENTS: rng.standard_normal((count, 4, 2, 2), dtype=np.float32),
        TEACHER_LATENTS: rng.standard_normal((count, 4, 2, 2), dtype=np.float32),
        IMAGES: rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8),
        CLASSIFIER_FEATURES: rng.normal(size=(count, 6)),
        REFERENCE_FEATURES: rng.normal(size=(count, 6)) + 1,
        **{attribute: rng.random(count) < 0.5 for attribute in (*ATTRIBUTES, ALL_CORRECT)},
    }
    return Samples(seed, [f"prompt {i}" for i in range(count)], features, range(count))


class Brightness(Metric):
    """The mean of all pixels: a metric from outside the package."""

    name = "brightness"
    label = "Brightness"
    description = "mean of all pixels"
    direction = "higher"
    needs = (IMAGES,)

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self.pixels: list[NDArray[np.uint8]] = []

    def update(self, samples: Samples) -> None:
        self.pixels.append(samples.features[IMAGES])

    def merge(self, other: Brightness) -> None:
        self.pixels += other.pixels

    def compute(self) -> Score | None:
        values = np.concatenate([np.empty(0), *(images.ravel() for images in self.pixels)])
        return Score(value=float(values.mean())) if values.size else None
