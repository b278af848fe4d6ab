"""The distance of a student's latents to its teacher's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from condistill.evaluate.metrics.mean import MeanMetric
from condistill.evaluate.metrics.metric import LATENTS, TEACHER_LATENTS, Samples, register_metric


@register_metric
class LatentRmse(MeanMetric):
    """Root mean squared difference to the teacher's latents from the same noise, per image."""

    name = "latent_rmse"
    label = "Latent RMSE"
    description = "distance to the teacher's latents from the same noise"
    direction = "lower"
    needs = (LATENTS, TEACHER_LATENTS)
    aspect = "teacher"

    def per_image(self, samples: Samples) -> NDArray[Any]:
        difference = (samples.features[LATENTS] - samples.features[TEACHER_LATENTS]).astype(np.float64)
        rmse: NDArray[Any] = np.sqrt((difference**2).mean((1, 2, 3)))
        return rmse

    @classmethod
    def predicate(cls, value: float, prompts: str) -> str:
        return f"is {cls.notation.text(value)} (latent RMSE) away from its teacher on {prompts}"
