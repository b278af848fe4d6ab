"""Density of generated images (Naeem et al., ICML 2020, arXiv 2002.09797)."""

from __future__ import annotations

from condistill.evaluate.metrics.intervals import Interval, mean_interval, seed_weights
from condistill.evaluate.metrics.manifold import ManifoldMetric
from condistill.evaluate.metrics.mean import image_values, mean_score
from condistill.evaluate.metrics.metric import INCEPTION, ImageKey, Score, register_metric
from condistill.evaluate.metrics.rows import OrderedRows


@register_metric
class Density(ManifoldMetric):
    """How many reference images are around a generated image (k = 5), in Inception features; 1 for equal sets."""

    name = "density"
    label = "Density"
    description = "reference images around each image, 1 where both sets are equal, in Inception features"
    needs = (INCEPTION,)

    def compute(self) -> Score | None:
        rows = self._densities()
        return None if rows is None else mean_score(rows, self._interval)

    def values(self) -> dict[ImageKey, float]:
        rows = self._densities()
        return {} if rows is None else image_values(rows)

    def _densities(self) -> OrderedRows | None:
        counted = self._counted()
        return None if counted is None else counted[0].with_values(counted[1].density)

    def _interval(self, rows: OrderedRows) -> Interval | None:
        return mean_interval(rows.values, seed_weights(rows.seeds), rows.clusters, seed=self.context.seed)
