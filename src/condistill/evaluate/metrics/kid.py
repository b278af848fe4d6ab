"""Kernel Inception distance (Bińkowski et al., ICLR 2018, arXiv 1801.01401)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.metric import INCEPTION, Notation, register_metric
from condistill.evaluate.metrics.mmd import MmdMetric


@register_metric
class KernelInceptionDistance(MmdMetric):
    """The estimate over all images at once; torch-fidelity's mean over random subsets has the same expectation."""

    name = "kid"
    label = "KID"
    description = "squared distance of the set of images to the reference images, in Inception features"
    needs = (INCEPTION,)
    notation = Notation("× 10⁻³", factor=1000.0)

    @staticmethod
    def kernel(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (x y / D + 1)^3."""
        bases: NDArray[np.float64] = first @ second.T / first.shape[1] + 1
        return bases * bases * bases  # `** 3` takes several times as long
