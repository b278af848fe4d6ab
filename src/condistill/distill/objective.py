"""The comparison of both models at the same states, and the loss that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from condistill.config.distill import DistillSettings
from condistill.distill import random_conditioning as rc
from condistill.distill.loss_terms import Comparison, active_terms, weighted_sum
from condistill.distill.states import Sample
from condistill.distill.targets import ModelInputs, TeacherTarget
from condistill.students.features import FeaturePair, layer_weights
from condistill.teachers.aside import encode_aside
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.utils.transfer import on_device


@dataclass(frozen=True)
class Losses:
    """The losses of B samples, each `[B]`."""

    total: Tensor
    """The weighted sum of the terms, which is minimised."""
    terms: Mapping[str, Tensor]
    """Every active term by name, without its weight."""


class Objective:
    """Runs teacher and student at the same states, and computes the loss."""

    def __init__(
        self, family: Family, settings: DistillSettings, accelerator: Accelerator, pairs: Sequence[FeaturePair]
    ) -> None:
        """Put hooks on the teacher; `close` removes them.

        Args:
            pairs: the layers to compare; none: features are not compared.
        """
        self.family, self.settings, self.accelerator = family, settings, accelerator
        self.target = TeacherTarget(family, settings, pairs)
        self.terms = active_terms(settings.loss)
        self._layer_weights = layer_weights(settings.loss.feature_layer_weights, pairs) if pairs else []

    def close(self) -> None:
        """Remove the hooks from the teacher, which serves the next student too."""
        self.target.close()

    def compare(self, model: Any, sample: Sample) -> Comparison:
        """Run both models at the states of a sample.

        Args:
            model: a `StudentForward`, as the accelerator wrapped it.
        """
        count, with_unconditional = len(sample.x_t), self.settings.loss.guidance_weight > 0
        inputs = self._inputs(sample, with_unconditional=with_unconditional)
        with torch.no_grad(), self.accelerator.autocast():
            teacher, teacher_features = self.target(model, inputs, sample)
        student, student_features = model(inputs.x_t, inputs.timesteps, inputs.condition)
        return Comparison(
            sample=sample,
            noise=self.family.noise,
            settings=self.settings.loss,
            teacher=teacher[:count],
            student=student[:count],
            teacher_unconditional=teacher[count:] if with_unconditional else None,
            student_unconditional=student[count:] if with_unconditional else None,
            teacher_features=[f[:count] for f in teacher_features],
            student_features=[f[:count] for f in student_features],
            layer_weights=self._layer_weights,
        )

    def losses(self, comparison: Comparison) -> Losses:
        """Return every active term and their weighted sum."""
        settings, noise = self.settings.loss, self.family.noise
        output_weight = rc.output_weight(
            settings.output_weighting,
            comparison.alpha_bar,
            prediction_type=noise.prediction_type,
            clip=settings.x0_clip or (0.1, 10.0),
        )
        terms = {term.name: term.term(comparison) for term in self.terms}
        return Losses(weighted_sum(self.terms, terms, output_weight), terms)

    def _inputs(self, sample: Sample, *, with_unconditional: bool) -> ModelInputs:
        family = self.family
        x_t, timesteps = sample.x_t, on_device(sample.timesteps, family.device)
        condition = encode_aside(family, sample.prompts)
        if sample.blend:
            condition = condition.lerp(encode_aside(family, sample.blend.prompts), sample.blend.weight)
        if sample.guidance_scale is not None:
            condition = condition.with_guidance_scale(sample.guidance_scale)
        if sample.image_uniform is not None:
            condition = family.training_condition(condition, sample.x_0, sample.image_uniform)
        if with_unconditional:
            x_t, timesteps = x_t.repeat(2, 1, 1, 1), timesteps.repeat(2)
            condition = Condition.cat([condition, family.unconditional(condition)])
        return ModelInputs(x_t, timesteps, condition)
