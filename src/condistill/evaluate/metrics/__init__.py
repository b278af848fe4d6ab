"""Metrics, one file each, and their registry."""

# ruff: noqa: F401, I001
# The order of these lines is the order of the tables.
import condistill.evaluate.metrics.all_correct
import condistill.evaluate.metrics.frechet_classifier
import condistill.evaluate.metrics.latent_rmse
import condistill.evaluate.metrics.attributes
from condistill.evaluate.metrics.metric import METRICS, Metric, Score, register_metric

__all__ = ["METRICS", "Metric", "Score", "register_metric"]
