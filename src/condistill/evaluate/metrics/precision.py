"""Precision of generated images (Kynkäänniemi et al., NeurIPS 2019, arXiv 1904.06991)."""

from __future__ import annotations

from condistill.evaluate.metrics.intervals import seed_weights, share_interval
from condistill.evaluate.metrics.manifold import ManifoldMetric
from condistill.evaluate.metrics.mean import image_values, mean_score
from condistill.evaluate.metrics.metric import INCEPTION, PERCENT, ImageKey, Score, register_metric
from condistill.evaluate.metrics.rows import OrderedRows


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
        rows = self._flags()
        return None if rows is None else mean_score(rows, _interval)

    def values(self) -> dict[ImageKey, float]:
        rows = self._flags()
        return {} if rows is None else image_values(rows)

    def _flags(self) -> OrderedRows | None:
        counted = self._counted()
        return None if counted is None else counted[0].with_values(counted[1].precise.astype(float))


def _interval(rows: OrderedRows) -> tuple[float, float] | None:
    return share_interval(rows.values, seed_weights(rows.seeds), rows.clusters)
