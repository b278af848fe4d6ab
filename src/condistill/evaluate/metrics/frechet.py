"""Fréchet distance between two sets of features (Heusel et al., NeurIPS 2017, arXiv 1706.08500, eq. 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features `[N, D]` and `[M, D]`.

    It is only called FID where the features are Inception's. Few images bias it upwards, so compare only
    distances over equally many.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a covariance needs two images or more, given {len(first)} and {len(second)}")
    mean = first.mean(0) - second.mean(0)
    roots = [_root(np.cov(features, rowvar=False)) for features in (first, second)]
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2), also where the C are singular
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(mean @ mean + sum((root**2).sum() for root in roots) - 2 * cross)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
