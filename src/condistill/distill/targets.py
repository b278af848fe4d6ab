"""The teacher's side of a training step: the predictions that the student must match.

Guidance distillation (Meng et al., CVPR 2023, arXiv 2210.03142): the target is the guided prediction. Progressive
distillation (Salimans & Ho, ICLR 2022, arXiv 2202.00512): it is the prediction with which one solver step of the
student replaces several of the teacher. Consistency distillation (Luo et al., arXiv 2310.04378): it is the prediction
with which the student sees the same end of the path as after one solver step of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from condistill.config.distill import ConsistencySettings, DistillSettings, ProgressiveSettings
from condistill.distill.states import Sample
from condistill.students.features import FeaturePair, FeatureRecorder
from condistill.students.guidance import guidance_kind
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import SolverGrid
from condistill.utils.transfer import on_device


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of both models: B samples, or 2B if each is followed by itself with the empty prompt."""

    x_t: Tensor
    timesteps: Tensor
    """On the device."""
    condition: Condition


class TeacherTarget:
    """Computes the predictions that the student must match, and the teacher's features."""

    def __init__(self, family: Family, settings: DistillSettings, pairs: Sequence[FeaturePair]) -> None:
        """Put hooks on the teacher's layers of `pairs`; `close` removes them."""
        self.family, self.settings = family, settings
        layers = [family.denoiser.get_submodule(pair.teacher) for pair in pairs]
        self._recorder = FeatureRecorder(layers, settings.loss.features)
        few_steps = settings.few_steps
        self.grid = SolverGrid(family.noise, few_steps.grid_steps) if few_steps else None
        """The timesteps of a few-step student; None: all timesteps."""
        self._takes_guidance_scale = guidance_kind(family.denoiser) == "embedded"

    def __call__(self, model: Any, inputs: ModelInputs, sample: Sample) -> tuple[Tensor, list[Tensor]]:
        """Return the target `[N, C, h, w]` and the teacher's features, without gradients if called without them.

        Args:
            model: a `StudentForward`, as the accelerator wrapped it; its own next prediction is part of the target
                of consistency distillation.
        """
        with self._recorder as recorder:
            prediction = self._predict(inputs.x_t, inputs.timesteps, inputs.condition, sample.guidance_scale)
        features = recorder.features
        if isinstance(self.settings.few_steps, ProgressiveSettings):
            prediction = self._progressive(prediction, sample, inputs.condition)
        elif isinstance(self.settings.few_steps, ConsistencySettings):
            prediction = self._consistency(model, prediction, sample, inputs.condition)
        return prediction, features

    def close(self) -> None:
        """Remove the hooks from the teacher."""
        self._recorder.remove()

    def _predict(self, x_t: Tensor, timesteps: Tensor, condition: Condition, guidance_scale: Tensor | None) -> Tensor:
        """Return the teacher's prediction `[N, C, h, w]`, guided for guidance distillation.

        Args:
            guidance_scale: the student's input `[N]`; None: it takes no guidance scale.
        """
        family, distilled = self.family, self.settings.guidance_distillation
        if distilled is None or self._takes_guidance_scale:
            return family.predict(family.denoiser, x_t, timesteps, condition)
        unconditional = family.unconditional(condition)
        scale: Any = distilled
        if guidance_scale is not None:
            unconditional = unconditional.with_guidance_scale(guidance_scale)
            scale = on_device(guidance_scale.float(), x_t.device).view(-1, 1, 1, 1)
        both = Condition.cat([condition, unconditional])
        predictions = family.predict(family.denoiser, x_t.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
        conditional_prediction, unconditional_prediction = predictions.chunk(2)
        guided: Tensor = unconditional_prediction + scale * (conditional_prediction - unconditional_prediction)
        return guided

    def _progressive(self, prediction: Tensor, sample: Sample, condition: Condition) -> Tensor:
        """Return the prediction that takes the student in one step where the teacher gets in several.

        Args:
            prediction: the teacher's at the sample's states.
        """
        assert self.grid is not None
        assert isinstance(self.settings.few_steps, ProgressiveSettings)
        noise, device, steps = self.family.noise, self.family.device, self.settings.few_steps.teacher_steps
        end = self.grid.below(sample.timesteps)
        x, timesteps = sample.x_t, sample.timesteps
        for k in range(1, steps + 1):
            next_timesteps = end if k == steps else noise.between(sample.timesteps, end, k, steps)
            x = noise.step(prediction, x, on_device(timesteps, device), on_device(next_timesteps, device))
            timesteps = next_timesteps
            if k < steps:
                prediction = self._predict(x, on_device(timesteps, device), condition, sample.guidance_scale)
        return noise.implied_prediction(x, sample.x_t, on_device(sample.timesteps, device), on_device(end, device))

    def _consistency(self, model: Any, prediction: Tensor, sample: Sample, condition: Condition) -> Tensor:
        """Return the prediction with the same end of the path as the student sees after one solver step.

        Latent consistency distillation (Luo et al., arXiv 2310.04378, eq. 10), with the student itself in place of
        its average (Song & Dhariwal, ICLR 2024, arXiv 2310.14189, section 3.2).

        Args:
            prediction: the teacher's at the sample's states.
        """
        assert self.grid is not None
        noise, device = self.family.noise, self.family.device
        timesteps = on_device(sample.timesteps, device)
        next_timesteps = on_device(self.grid.below(sample.timesteps), device)
        x_next = noise.step(prediction, sample.x_t, timesteps, next_timesteps)
        # the finished latent is its own end, which is the consistency function at timestep 0
        next_timesteps = next_timesteps.clamp(min=0)
        next_prediction, _ = model(x_next, next_timesteps, condition)
        end = noise.path_end(next_prediction, x_next, next_timesteps)
        return noise.consistent_prediction(end, sample.x_t, timesteps)
