"""95 % intervals over prompts.

The images of one prompt are a cluster: they are resampled together, so that many images of few prompts do not look
like many prompts. Rows are weighted such that every evaluation seed counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from condistill.utils.randomness import Stream, generator

LEVEL = 0.95
RESAMPLES = 2000
_BLOCK = 1 << 21
"""Random numbers that are in memory at once."""
_GROUPS = 4096
"""More clusters are put into so many groups, whose variance is known within 2 %, so that 30,000 prompts take no longer.
"""
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_SMALL_T = (12.706, 4.303, 3.182, 2.776, 2.571)
"""The 97.5 % points of Student's t for 1 to 5 degrees of freedom."""

Interval = tuple[float, float]


def seed_weights(seeds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights `[N]` of sum 1 with which every seed counts alike, and every image of a seed."""
    _, index, counts = np.unique(seeds, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = 1.0 / (len(counts) * counts[index])
    return weights


def mean_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], clusters: NDArray[np.int64], *, seed: int
) -> Interval | None:
    """Return the 95 % bootstrap interval of the weighted mean of values `[N]` over clusters `[N]`.

    The ends are the 2.5 % and 97.5 % points of the means of resampled clusters. Their distances from the mean are
    widened by t_{C-1} / z sqrt(C / (C - 1)) for C clusters, since the points alone are too close for few clusters
    (Hesterberg, "What teachers should know about the bootstrap", The American Statistician 2015, section 3.2).

    Returns:
        None for fewer than two clusters.
    """
    sums, masses = np.bincount(clusters, weights * values), np.bincount(clusters, weights)
    count = len(sums)
    if count < 2:
        return None
    mean = sums.sum() / masses.sum()
    sums = sums - mean * masses  # resampled deviations, whose rounding errors do not grow with the mean
    rng = generator(seed, Stream.BOOTSTRAP)
    if count > _GROUPS:
        groups = rng.permutation(count) % _GROUPS
        sums, masses, count = np.bincount(groups, sums), np.bincount(groups, masses), _GROUPS
    deviations = np.empty(RESAMPLES)
    rows = max(1, _BLOCK // count)
    for start in range(0, RESAMPLES, rows):
        chosen = rng.integers(0, count, (min(rows, RESAMPLES - start), count))
        deviations[start : start + rows] = sums[chosen].sum(1) / masses[chosen].sum(1)
    tail = 100 * (1 - LEVEL) / 2
    below, above = np.percentile(deviations, (tail, 100 - tail))
    wider = t_quantile(count - 1) / _Z * math.sqrt(count / (count - 1))
    return float(mean + wider * min(below, 0.0)), float(mean + wider * max(above, 0.0))


def share_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], clusters: NDArray[np.int64]
) -> Interval | None:
    """Return the 95 % interval of a share by Wilson's formula, which is right for shares of 0 and 1 too.

    Where the images of one prompt are alike, the number of images is replaced by that of independent images with the
    same standard error.

    Returns:
        None without values.
    """
    if not len(values):
        return None
    share = float((weights * values).sum() / weights.sum())
    residuals = np.bincount(clusters, weights * (values - share)) / weights.sum()
    variance, independent = float((residuals**2).sum()), float(1 / ((weights / weights.sum()) ** 2).sum())
    if len(residuals) < len(values):
        bound = share * (1 - share) / variance if variance > 0 else len(residuals)
        independent = min(independent, max(bound, 1.0))
    centre = (share + _Z**2 / (2 * independent)) / (1 + _Z**2 / independent)
    half = _Z / (1 + _Z**2 / independent) * math.sqrt(share * (1 - share) / independent + (_Z / (2 * independent)) ** 2)
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def normal_interval(value: float, variance: float, degrees: int) -> Interval:
    """Return value -+ t sqrt(variance), with the 97.5 % point of Student's t for these degrees of freedom."""
    half = t_quantile(degrees) * math.sqrt(max(variance, 0.0))
    return value - half, value + half


def standard_error(interval: Interval) -> float:
    """Return about the standard error of a value with this 95 % interval."""
    return (interval[1] - interval[0]) / (2 * _Z)


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % point of Student's t (Cornish-Fisher expansion; within 0.1 %)."""
    if degrees <= len(_SMALL_T):
        return _SMALL_T[degrees - 1]
    terms: Sequence[float] = (
        _Z,
        (_Z**3 + _Z) / (4 * degrees),
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2),
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / (384 * degrees**3),
    )
    return sum(terms)
