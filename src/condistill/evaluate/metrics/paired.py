"""The difference of two models over the same prompts and the same noise.

Most of the spread of a value is that of the prompts, which both models share. It cancels in the differences image by
image, so that far fewer images separate two models than their two intervals need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from condistill.evaluate.metrics.intervals import mean_interval, seed_weights
from condistill.evaluate.metrics.metric import ImageKey


class PairedDifference(NamedTuple):
    """A mean difference with its 95 % interval over the prompts."""

    difference: float
    low: float
    high: float
    images: int
    """Images that both models have."""


def compare(
    one: Mapping[ImageKey, float],
    other: Mapping[ImageKey, float],
    seed: int,
    *,
    prompts: Mapping[ImageKey, str] | None = None,
) -> PairedDifference | None:
    """Return the mean of `one` minus `other` over the images that both have; every evaluation seed counts alike.

    Args:
        one: the value of each image by its seed and number, as `Metric.values` returns them.
        other: those of the other model.
        seed: of the bootstrap; the result is a function of the values and of this seed.
        prompts: the prompt of each image. Images of equal prompts are resampled together; without it every image
            counts as a prompt of its own.

    Returns:
        None where the two share fewer than two prompts: one difference says nothing about others.
    """
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    differences = np.array([one[key] - other[key] for key in shared], np.float64)
    known: dict[object, int] = {}
    names = [prompts.get(key, key) if prompts else key for key in shared]
    clusters = np.array([known.setdefault(name, len(known)) for name in names], np.int64)
    weights = seed_weights(np.array([key[0] for key in shared], np.int64))
    interval = mean_interval(differences, weights, clusters, seed=seed)
    if interval is None or not np.isfinite(differences).all():
        return None
    return PairedDifference(float((weights * differences).sum()), *interval, len(shared))
