"""Balls around the features of images: what precision, recall, density and coverage count.

A ball of k reaches from an image to its k-th nearest neighbour in its own set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import EMPTY, Context, Metric, Samples
from condistill.evaluate.metrics.pairwise import Floats, Memo, blocks, squared_distances
from condistill.evaluate.metrics.rows import OrderedRows, Rows

NEIGHBOURS = 3
"""k of precision and recall."""
DENSE_NEIGHBOURS = 5
"""k of density and coverage."""
ENOUGH = 5_000
_SLACK = 1e-9
"""Relative difference of squared distances that is rounding."""

_MANIFOLDS = Memo(4)
_RADII = Memo(4)


@dataclass(frozen=True)
class Manifolds:
    """Which images of two sets are inside balls of the other set."""

    precise: NDArray[np.bool_]
    """By generated image, whether a ball of a reference image contains it (k = 3)."""
    recalled: NDArray[np.bool_]
    """By reference image, whether a ball of a generated image contains it (k = 3)."""
    density: NDArray[np.float64]
    """By generated image, the number of balls of reference images that contain it, over k (k = 5)."""
    covered: NDArray[np.bool_]
    """By reference image, whether its ball contains a generated image (k = 5)."""


class ManifoldMetric(Metric):
    """A metric that counts balls in the feature that it needs. The four of a model are counted at once."""

    direction = "higher"
    reference = "features"
    aspect = "images"
    is_partial = True

    def __init__(self, context: Context = EMPTY) -> None:
        super().__init__(context)
        self._rows = Rows()

    def update(self, samples: Samples) -> None:
        self._rows.add(samples, samples.features[self.needs[0]])

    def merge(self, other: ManifoldMetric) -> None:
        self._rows.merge(other._rows)

    def _counted(self) -> tuple[OrderedRows, Manifolds] | None:
        """Return the generated images in order, and what is inside which balls; None for too few, or for no numbers."""
        reference = self.context.reference[self.needs[0]].features if self.context.reference else None
        if reference is None or min(len(self._rows), len(reference)) <= DENSE_NEIGHBOURS:
            return None
        rows = self._rows.ordered()
        if not np.isfinite(rows.values).all():
            return None
        return rows, _MANIFOLDS.get("manifolds", manifolds, rows.values, reference)

    @classmethod
    def caution(cls, images: int) -> str:
        if images >= ENOUGH:
            return ""
        return (
            "Precision, recall, density and coverage depend on the number of images: compare those of "
            f"{images:,} images only with values over as many."
        )


def manifolds(generated: Floats, reference: Floats) -> Manifolds:
    """Return which of generated `[N, D]` and reference `[M, D]` features are inside balls of the other set.

    On the surface counts as inside for precision and recall, as in torch-fidelity, and as outside for density and
    coverage, as in their authors' code: with that, equal sets have a density of 1.

    Raises:
        ValueError: a set has too few images for a ball.
    """
    if min(len(generated), len(reference)) <= DENSE_NEIGHBOURS:
        raise ValueError(f"balls need more than {DENSE_NEIGHBOURS} images; got {len(generated)} and {len(reference)}")
    own, (near, far) = squared_radii(generated)[0], _RADII.get("radii", squared_radii, reference)
    precise, recalled = np.zeros(len(generated), bool), np.zeros(len(reference), bool)
    density, covered = np.zeros(len(generated)), np.zeros(len(reference), bool)
    for rows, first in blocks(generated):
        for columns, second in blocks(reference):
            distances = squared_distances(first, second)
            precise[rows] |= (distances <= near[columns] * (1 + _SLACK)).any(1)
            recalled[columns] |= (distances <= own[rows, None] * (1 + _SLACK)).any(0)
            inside = distances < far[columns] * (1 - _SLACK)
            density[rows] += inside.sum(1) / DENSE_NEIGHBOURS
            covered[columns] |= inside.any(0)
    return Manifolds(precise, recalled, density, covered)


def squared_radii(features: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared distances of features `[N, D]` to their 3rd and to their 5th nearest neighbour, `[N]` each."""
    nearest = np.full((len(features), DENSE_NEIGHBOURS + 1), np.inf)
    for rows, first in blocks(features):
        for _, second in blocks(features):
            merged = np.concatenate([nearest[rows], squared_distances(first, second)], 1)
            nearest[rows] = np.partition(merged, DENSE_NEIGHBOURS, 1)[:, : DENSE_NEIGHBOURS + 1]
    nearest.sort(1)  # the nearest of all is the image itself
    return nearest[:, NEIGHBOURS], nearest[:, DENSE_NEIGHBOURS]
