"""Precision of generated images (Kynkäänniemi et al., NeurIPS 2019, arXiv 1904.06991)."""

from __future__ import annotations

from condistill.evaluate.metrics.intervals import seed_weights, share_interval
from condistill.evaluate.metrics.manifold import ManifoldMetric
from condistill.evaluate.metrics.mean import mean_score
from condistill.evaluate.metrics.metric import INCEPTION, PERCENT, Score, register_metric


@register_metric
class Precision(ManifoldMetric):
    """The share of generated images that are close to a reference image (k = 3), in Inception features."""

    name = "precision"
    label = "Precision"
    description = "images that are like some reference image, in Inception features"
    needs = (INCEPTION,)
    notation = PERCENT
    upper_bound = 1.0

    def compute(self) -> Score | None:
        """Return the share with its interval; it has no values of images, which depend on the images of the split."""
        counted = self._counted()
        if counted is None:
            return None
        rows = counted[0].with_values(counted[1].precise.astype(float))
        return mean_score(rows, share_interval(rows.values, seed_weights(rows.seeds), rows.clusters))
