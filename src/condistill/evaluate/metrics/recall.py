"""Recall of the reference images (Kynkäänniemi et al., NeurIPS 2019, arXiv 1904.06991)."""

from __future__ import annotations

from condistill.evaluate.metrics.manifold import ManifoldMetric
from condistill.evaluate.metrics.metric import INCEPTION, PERCENT, Score, register_metric


@register_metric
class Recall(ManifoldMetric):
    """The share of reference images that are close to a generated image (k = 3), in Inception features."""

    name = "recall"
    label = "Recall"
    description = "reference images that are like some image, in Inception features"
    needs = (INCEPTION,)
    notation = PERCENT
    upper_bound = 1.0

    def compute(self) -> Score | None:
        counted = self._counted()
        return None if counted is None else Score(value=float(counted[1].recalled.mean()))
