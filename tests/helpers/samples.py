"""Random samples with every feature that a metric can need, and one that tests of metrics use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import (
    ALL_CORRECT,
    CLASSIFIER_FEATURES,
    CLIP_IMAGE,
    CLIP_SCORE,
    DINOV2,
    EMPTY,
    HPSV2,
    IMAGES,
    INCEPTION,
    INCEPTION_LOGITS,
    LATENTS,
    PICKSCORE,
    REFERENCE_FEATURES,
    TEACHER_LATENTS,
    Context,
    Metric,
    ReferenceSet,
    Samples,
    Score,
    of_teacher,
)
from condistill.evaluate.metrics.moments import Moments
from condistill.miniature.world import ATTRIBUTES

_SIZES = {INCEPTION: 6, INCEPTION_LOGITS: 7, DINOV2: 5, CLIP_IMAGE: 8}


def reference_set(features: NDArray[np.float32]) -> ReferenceSet:
    """Return reference images with these features `[M, D]`."""
    moments = Moments()
    moments.update(features)
    return ReferenceSet(moments, features)


def random_context(count: int = 30) -> Context:
    """Return a context with reference images in every feature that a metric compares with them."""
    rng = np.random.Generator(np.random.Philox(99))
    features = {name: rng.random((count, size), dtype=np.float32) for name, size in _SIZES.items()}
    return Context({name: reference_set(of_images) for name, of_images in features.items()})


def random_samples(seed: int, count: int) -> Samples:
    """Return samples of one evaluation seed, two of each prompt, a function of the seed."""
    rng = np.random.Generator(np.random.Philox(seed))
    features = {
        LATENTS: rng.standard_normal((count, 4, 2, 2), dtype=np.float32),
        TEACHER_LATENTS: rng.standard_normal((count, 4, 2, 2), dtype=np.float32),
        IMAGES: rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8),
        CLASSIFIER_FEATURES: rng.normal(size=(count, 6)),
        REFERENCE_FEATURES: rng.normal(size=(count, 6)) + 1,
        **{attribute: rng.random(count) < 0.5 for attribute in (*ATTRIBUTES, ALL_CORRECT)},
        **{name: rng.random(count, dtype=np.float32) for name in (CLIP_SCORE, PICKSCORE, HPSV2)},
        **{name: rng.random((count, size), dtype=np.float32) for name, size in _SIZES.items()},
        of_teacher(DINOV2): rng.random((count, _SIZES[DINOV2]), dtype=np.float32),
    }
    return Samples(seed, [f"prompt {i // 2}" for i in range(count)], features, range(count))


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
