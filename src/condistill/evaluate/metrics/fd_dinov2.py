"""Fréchet distance in DINOv2 features (Stein et al., NeurIPS 2023, arXiv 2306.04675)."""

from __future__ import annotations

from condistill.evaluate.metrics.frechet_set import FrechetMetric
from condistill.evaluate.metrics.metric import DINOV2, register_metric


@register_metric
class FrechetDinov2Distance(FrechetMetric):
    """The Fréchet distance in the class token of DINOv2."""

    name = "fd_dinov2"
    label = "FD-DINOv2"
    description = "Fréchet distance of the set of images to the reference images, in DINOv2 features"
    needs = (DINOV2,)
