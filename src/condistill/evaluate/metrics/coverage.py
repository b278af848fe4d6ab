"""Coverage of the reference images (Naeem et al., ICML 2020, arXiv 2002.09797)."""

from __future__ import annotations

from condistill.evaluate.metrics.manifold import ManifoldMetric
from condistill.evaluate.metrics.metric import INCEPTION, PERCENT, Score, register_metric


@register_metric
class Coverage(ManifoldMetric):
    """The share of reference images that have a generated image around them (k = 5), in Inception features."""

    name = "coverage"
    label = "Coverage"
    description = "reference images with an image in their neighbourhood, in Inception features"
    needs = (INCEPTION,)
    notation = PERCENT
    upper_bound = 1.0

    def compute(self) -> Score | None:
        counted = self._counted()
        return None if counted is None else Score(value=float(counted[1].covered.mean()))
