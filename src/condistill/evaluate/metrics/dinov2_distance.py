"""The distance of images to the teacher's, in DINOv2 features (Oquab et al., TMLR 2024, arXiv 2304.07193)."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from condistill.evaluate.metrics.cosine import cosine_distances
from condistill.evaluate.metrics.mean import MeanMetric
from condistill.evaluate.metrics.metric import DINOV2, Samples, of_teacher, register_metric


@register_metric
class Dinov2Distance(MeanMetric):
    """1 minus the cosine of the features of a student's and its teacher's image from the same noise, per image."""

    name = "dinov2_distance"
    label = "DINOv2 distance"
    description = "distance to the teacher's images from the same noise, in DINOv2 features"
    direction = "lower"
    needs = (DINOV2, of_teacher(DINOV2))
    aspect = "teacher"

    def per_image(self, samples: Samples) -> NDArray[Any]:
        return cosine_distances(samples.features[DINOV2], samples.features[of_teacher(DINOV2)])
