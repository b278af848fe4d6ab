"""Count, mean and covariance of features that arrive in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Count, mean `[D]` and scatter matrix `[D, D]` of features that arrive in pieces (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(0)
        self.scatter: NDArray[np.float64] = np.zeros((0, 0))
        """Sum of the outer products of the features' deviations from their mean."""

    def update(self, features: NDArray[np.floating[Any]]) -> None:
        """Add features `[N, D]`; sums are float64."""
        if len(features):
            features = features.astype(np.float64)
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
