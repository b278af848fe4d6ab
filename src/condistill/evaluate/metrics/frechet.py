"""Fréchet distance between two sets of features (Heusel et al., NeurIPS 2017, arXiv 1706.08500, eq. 6).

    d = ||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

With any factors F1, F2 of the covariances, C = F^T F, the trace of (C1 C2)^(1/2) is the sum of the singular values of
F1 F2^T, also where the covariances are singular. A factor of few features is cheap: their deviations from the mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.moments import Moments

Factor = NDArray[np.float64]
"""`[R, D]`, for R >= 1."""


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the distance of two sets of features.

    It is called FID only where the features are those of Inception. Few images bias it upwards, so compare only
    distances over equally many images.

    Raises:
        ValueError: a set has fewer than two features, and so no covariance.
    """
    if min(first.count, second.count) < 2:
        raise ValueError(f"a covariance needs two images or more; got {first.count} and {second.count}")
    factors = root_of_covariance(first.covariance), root_of_covariance(second.covariance)
    return distance_of_factors(first.mean - second.mean, *factors)


def distance_of_factors(mean: NDArray[np.float64], first: Factor, second: Factor) -> float:
    """Return the distance from the difference of the means `[D]` and factors of the covariances."""
    cross = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return float(mean @ mean + (first**2).sum() + (second**2).sum() - 2 * cross)


def factor_of_features(features: NDArray[np.floating[Any]], mean: NDArray[np.float64]) -> Factor:
    """Return the factor `[N, D]` of features `[N, D]` with this mean, for N >= 2."""
    deviations: Factor = (features.astype(np.float64) - mean) / math.sqrt(len(features) - 1)
    return deviations


def root_of_covariance(covariance: NDArray[np.float64]) -> Factor:
    """Return the square root of a symmetric positive semi-definite matrix, which is a factor of it."""
    values, vectors = np.linalg.eigh(covariance)
    root: Factor = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
