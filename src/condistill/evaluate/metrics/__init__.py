"""Metrics, one file each, and their registry."""

# ruff: noqa: F401, I001
# The order of these lines is the order of the tables, and the verdict is about the first metric that was measured: what
# people want of an image comes first, then agreement with the teacher, then sets of images, which can rank a worse
# model first.
import condistill.evaluate.metrics.all_correct
import condistill.evaluate.metrics.frechet_classifier
import condistill.evaluate.metrics.hpsv2
import condistill.evaluate.metrics.pickscore
import condistill.evaluate.metrics.clip_score
import condistill.evaluate.metrics.dinov2_distance
import condistill.evaluate.metrics.latent_rmse
import condistill.evaluate.metrics.diversity
import condistill.evaluate.metrics.fd_dinov2
import condistill.evaluate.metrics.cmmd
import condistill.evaluate.metrics.fid
import condistill.evaluate.metrics.kid
import condistill.evaluate.metrics.inception_score
import condistill.evaluate.metrics.precision
import condistill.evaluate.metrics.recall
import condistill.evaluate.metrics.density
import condistill.evaluate.metrics.coverage
import condistill.evaluate.metrics.attributes
from condistill.evaluate.metrics.metric import METRICS, Metric, Score, register_metric

__all__ = ["METRICS", "Metric", "Score", "register_metric"]
