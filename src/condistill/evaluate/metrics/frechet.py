"""Fréchet distance between two sets of features (Heusel et al., NeurIPS 2017, arXiv 1706.08500, eq. 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.moments import Moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return ||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features.

    It is called FID only where the features are those of Inception. Few images bias it upwards, so compare only
    distances over equally many images.

    Raises:
        ValueError: a set has fewer than two features, and so no covariance.
    """
    if min(first.count, second.count) < 2:
        raise ValueError(f"a covariance needs two images or more; got {first.count} and {second.count}")
    mean = first.mean - second.mean
    roots = [_root(moments.covariance) for moments in (first, second)]
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2), also where the C are singular
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(mean @ mean + sum((root**2).sum() for root in roots) - 2 * cross)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
