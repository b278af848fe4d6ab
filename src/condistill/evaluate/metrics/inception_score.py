"""Inception score (Salimans et al., NeurIPS 2016, arXiv 1606.03498)."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import (
    EMPTY,
    INCEPTION_LOGITS,
    Context,
    Metric,
    Samples,
    Score,
    register_metric,
)
from condistill.evaluate.metrics.rows import Rows

PARTS = 10
_SHUFFLE_SEED = 2020
"""torch-fidelity's, so that both put the same images into the same part."""
ENOUGH = 5_000


@register_metric
class InceptionScore(Metric):
    """The mean over 10 random parts of exp(mean KL(p(y|x) || p(y))): images that are clear, and all different."""

    name = "inception_score"
    label = "Inception score"
    description = "how clear and how different from one another the images are to Inception's classifier"
    direction = "higher"
    needs = (INCEPTION_LOGITS,)
    aspect = "images"
    is_partial = True

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._rows = Rows()

    def update(self, samples: Samples) -> None:
        self._rows.add(samples, samples.features[INCEPTION_LOGITS])

    def merge(self, other: InceptionScore) -> None:
        self._rows.merge(other._rows)

    def compute(self) -> Score | None:
        """Return the score; None for fewer images than parts, or where it is not finite."""
        count = len(self._rows)
        if count < PARTS:
            return None
        logits = self._rows.ordered().values
        order = np.random.RandomState(_SHUFFLE_SEED).permutation(count)
        ends = [part * count // PARTS for part in range(PARTS + 1)]
        scores = [_part_score(logits[order[start:end]]) for start, end in pairwise(ends)]
        value = float(np.mean(scores))
        return Score(value=value) if math.isfinite(value) else None

    @classmethod
    def caution(cls, images: int) -> str:
        if images >= ENOUGH:
            return ""
        return (
            f"The {cls.label} of {images:,} images is too small by an amount that depends on their number: compare it "
            f"only with values over as many images, and trust differences from {ENOUGH:,} images on."
        )


def _part_score(logits: NDArray[np.float32]) -> float:
    """Return exp(mean KL(p(y|x) || p(y))) of logits `[N, classes]`."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(0)
    log_mean = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_mean)).sum(1).mean()))
