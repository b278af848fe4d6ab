"""Cosine distances of features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unit_rows(features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return features `[N, D]` scaled to norm 1, as float64; a row of zeros stays as it is."""
    wide = features.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = wide / np.where(norms > 0, norms, 1)
    return scaled


def cosine_distances(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return 1 minus the cosine of each row of one with the same row of the other, `[N]`: 0 to 2.

    It is half the squared distance of the rows at norm 1, which has all its digits where they are nearly equal.
    """
    distances: NDArray[np.float64] = ((unit_rows(first) - unit_rows(second)) ** 2).sum(1) / 2
    return distances
