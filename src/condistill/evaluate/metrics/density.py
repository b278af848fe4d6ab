"""Density of generated images (Naeem et al., ICML 2020, arXiv 2002.09797)."""

from __future__ import annotations

from condistill.evaluate.metrics.intervals import mean_interval, seed_weights
from condistill.evaluate.metrics.manifold import ManifoldMetric
from condistill.evaluate.metrics.mean import mean_score
from condistill.evaluate.metrics.metric import INCEPTION, Score, register_metric


@register_metric
class Density(ManifoldMetric):
    """How many reference images are around a generated image (k = 5), in Inception features; 1 for equal sets."""

    name = "density"
    label = "Density"
    description = "reference images around each image, 1 where both sets are equal, in Inception features"
    needs = (INCEPTION,)

    def compute(self) -> Score | None:
        """Return the mean with its interval; it has no values of images, which depend on the images of the split."""
        counted = self._counted()
        if counted is None:
            return None
        rows = counted[0].with_values(counted[1].density)
        weights = seed_weights(rows.seeds)
        return mean_score(rows, mean_interval(rows.values, weights, rows.clusters, seed=self.context.seed))
