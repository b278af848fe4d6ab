"""Fréchet distance between two sets of features (Heusel et al., NeurIPS 2017, arXiv 1706.08500, eq. 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Count, mean `[D]` and scatter matrix `[D, D]` of features that arrive in pieces (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(0)
        self.scatter: NDArray[np.float64] = np.zeros((0, 0))
        """Sum of the outer products of the features' deviations from their mean."""

    def update(self, features: NDArray[np.float64]) -> None:
        """Add features `[N, D]`."""
        if len(features):
            mean = features.mean(0)
            deviations = features - mean
            self._add(len(features), mean, deviations.T @ deviations)

    def merge(self, other: Moments) -> None:
        """Add the features of another set."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The unbiased covariance `[D, D]`; needs two features."""
        return self.scatter / (self.count - 1)

    def _add(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        if not self.count:
            self.count, self.mean, self.scatter = count, mean, scatter
            return
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


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
