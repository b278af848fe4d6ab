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
    root = _root(np.cov(first, rowvar=False))
    covariance = np.cov(second, rowvar=False)
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), whose argument is symmetric
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance @ root), 0, None)).sum()
    return float(mean @ mean + np.trace(root @ root) + np.trace(covariance) - 2 * cross)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
