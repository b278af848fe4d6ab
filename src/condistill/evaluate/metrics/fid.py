"""Fréchet Inception distance (Heusel et al., NeurIPS 2017, arXiv 1706.08500)."""

from __future__ import annotations

from condistill.evaluate.metrics.frechet_set import FrechetMetric
from condistill.evaluate.metrics.metric import INCEPTION, register_metric


@register_metric
class FrechetInceptionDistance(FrechetMetric):
    """The Fréchet distance in the pooled features of Inception-v3."""

    name = "fid"
    label = "FID"
    description = "Fréchet distance of the set of images to the reference images, in Inception features"
    needs = (INCEPTION,)
