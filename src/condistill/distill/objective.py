"""What the student is trained on: one forward of each model at the same states, and the losses between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from condistill.config.distill import ConsistencySettings, DistillSettings, ProgressiveSettings
from condistill.distill import random_conditioning as rc
from condistill.distill.states import Sample
from condistill.students.derive import Student
from condistill.students.features import FeatureKind, FeaturePair, FeatureRecorder, layer_weights
from condistill.students.guidance import guidance_kind
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import SolverGrid


class StudentForward(nn.Module):
    """Everything that is trained, behind one forward, so that data parallelism sees all of it."""

    def __init__(self, family: Family, student: Student, *, features: FeatureKind | None) -> None:
        """Wrap a student; `features` is what of it is compared, None: nothing."""
        super().__init__()
        self.denoiser = student.denoiser
        self.maps = student.maps if features else nn.ModuleList()
        points = [student.denoiser.get_submodule(pair.student) for pair in student.pairs] if features else []
        self._recorder = FeatureRecorder(points, features or "stages")
        self._predict = family.predict

    def forward(self, x_t: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        with self._recorder as recorder:
            prediction = self._predict(self.denoiser, x_t, timesteps, condition)
        features = [to_teacher(f) for to_teacher, f in zip(self.maps, recorder.features, strict=True)]
        return prediction, features


@dataclass(frozen=True)
class Predictions:
    """What both models say at the same B states; `null` is without the prompt, where it was asked for."""

    teacher: Tensor
    student: Tensor
    teacher_null: Tensor | None = None
    student_null: Tensor | None = None


@dataclass(frozen=True)
class Moves:
    """Which of B states a path carries on, and by whose prediction."""

    on_path: Tensor
    """Bool `[B]`, on the CPU as the next."""
    by_student: Tensor


class Objective:
    """The losses of a sample, each `[B]`, and their weighted sum."""

    def __init__(
        self, family: Family, settings: DistillSettings, accelerator: Accelerator, pairs: Sequence[FeaturePair]
    ) -> None:
        self.family, self.settings, self.accelerator = family, settings, accelerator
        points = [family.denoiser.get_submodule(pair.teacher) for pair in pairs]
        self.teacher_recorder = FeatureRecorder(points, settings.loss.features)
        self.layer_weights = layer_weights(settings.loss.feature_layer_weights, pairs) if pairs else []
        few = settings.few_steps
        self.grid = SolverGrid(family.noise, few.grid_steps) if few else None
        """The student's timesteps, where it takes few."""
        self._teacher_is_told = guidance_kind(family.denoiser) == "embedded"

    def __call__(self, model: Any, sample: Sample) -> tuple[dict[str, Tensor], Predictions]:
        """Run both models at the sample's states.

        Args:
            model: a `StudentForward`, as the accelerator wrapped it.
        """
        predictions, features = self._predict(model, sample)
        return self._losses(sample, predictions, *features), predictions

    def _predict(self, model: Any, sample: Sample) -> tuple[Predictions, tuple[list[Tensor], list[Tensor]]]:
        family, count = self.family, len(sample.x_t)
        x_t, timesteps = sample.x_t, sample.timesteps.to(family.device)
        condition = family.encode(sample.prompts)
        if sample.blend:
            condition = condition.lerp(family.encode(sample.blend.partners), sample.blend.weight)
        if sample.guidance_scale is not None:
            condition = condition.with_guidance_scale(sample.guidance_scale)
        if sample.context is not None:
            condition = family.training_condition(condition, sample.x_0, sample.context)
        with_null = self.settings.loss.guidance_weight > 0
        if with_null:
            x_t, timesteps = x_t.repeat(2, 1, 1, 1), timesteps.repeat(2)
            condition = Condition.cat([condition, family.unconditional(condition)])
        with torch.no_grad(), self.accelerator.autocast():
            with self.teacher_recorder as recorder:
                taught = self._ask_teacher(x_t, timesteps, condition, sample.guidance_scale)
            taught_features = [f[:count] for f in recorder.features]
            if isinstance(self.settings.few_steps, ProgressiveSettings):
                taught = self._walk(taught, sample, condition)
            elif isinstance(self.settings.few_steps, ConsistencySettings):
                taught = self._make_consistent(model, taught, sample, condition)
        predicted, features = model(x_t, timesteps, condition)
        parts = (taught[:count], predicted[:count]) + ((taught[count:], predicted[count:]) if with_null else ())
        return Predictions(*parts), ([f[:count] for f in features], taught_features)

    def _ask_teacher(
        self, x_t: Tensor, timesteps: Tensor, condition: Condition, guidance_scale: Tensor | None
    ) -> Tensor:
        """The teacher's prediction `[B, C, h, w]`, guided where guidance is folded in.

        Args:
            guidance_scale: what the condition tells the student, if it does.
        """
        family, fold = self.family, self.settings.guidance_distillation
        if fold is None or self._teacher_is_told:
            return family.predict(family.denoiser, x_t, timesteps, condition)
        null_condition = family.unconditional(condition)
        scale: Any = fold
        if guidance_scale is not None:
            null_condition = null_condition.with_guidance_scale(guidance_scale)
            scale = guidance_scale.float().to(x_t.device).view(-1, 1, 1, 1)
        both = Condition.cat([condition, null_condition])
        prediction = family.predict(family.denoiser, x_t.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
        with_prompt, null = prediction.chunk(2)
        guided: Tensor = null + scale * (with_prompt - null)
        return guided

    def _walk(self, prediction: Tensor, sample: Sample, condition: Condition) -> Tensor:
        """What the student must predict to do in one step what the teacher does in several.

        Args:
            prediction: the teacher's at the sample's states.
        """
        assert self.grid is not None
        assert isinstance(self.settings.few_steps, ProgressiveSettings)
        family, count = self.family, self.settings.few_steps.teacher_steps
        x_t, timesteps = sample.x_t, sample.timesteps
        end = self.grid.below(timesteps)
        x, here = x_t, timesteps
        for k in range(1, count + 1):
            follows = end if k == count else family.noise.between(timesteps, end, k, count)
            x = family.noise.step(prediction, x, here.to(family.device), follows.to(family.device))
            here = follows
            if k < count:
                prediction = self._ask_teacher(x, here.to(family.device), condition, sample.guidance_scale)
        return family.noise.implied_prediction(x, x_t, timesteps.to(family.device), end.to(family.device))

    def _make_consistent(self, model: Any, prediction: Tensor, sample: Sample, condition: Condition) -> Tensor:
        """What the student must predict to see the same end of the path as it sees one step of the teacher further on.

        Latent consistency distillation (Luo et al., arXiv 2310.04378, eq. 10), with the student as it is in place of
        its average (Song & Dhariwal, ICLR 2024, arXiv 2310.14189, section 3.2).

        Args:
            prediction: the teacher's at the sample's states.
        """
        assert self.grid is not None
        family, x_t = self.family, sample.x_t
        here, follows = sample.timesteps.to(family.device), self.grid.below(sample.timesteps).to(family.device)
        x_next = family.noise.step(prediction, x_t, here, follows)
        seen_from = follows.clamp(min=0)  # the finished latent is its own end, as the function says of timestep 0
        predicted, _ = model(x_next, seen_from, condition)
        return family.noise.consistent_prediction(family.noise.path_end(predicted, x_next, seen_from), x_t, here)

    def _losses(
        self, sample: Sample, predictions: Predictions, features: list[Tensor], taught_features: list[Tensor]
    ) -> dict[str, Tensor]:
        family, settings = self.family, self.settings.loss
        timesteps = sample.timesteps.to(family.device)
        zero = torch.zeros(len(sample.x_t), device=family.device)
        weight = rc.output_weight(
            settings.output_weighting,
            family.noise.alpha_bar(timesteps),
            prediction_type=family.noise.prediction_type,
            clip=settings.x0_clip or (0.1, 10.0),
        )
        output, feature, task, guidance = rc.mse(predictions.student, predictions.teacher), zero, zero, zero
        if features:
            normalized = settings.feature_normalization == "teacher"
            feature = rc.feature_loss(features, taught_features, weights=self.layer_weights, normalized=normalized)
        if settings.task_weight > 0:
            target = family.noise.target(sample.x_0, sample.noise, timesteps)
            task = rc.task_loss(predictions.student, target, sample.replaced.to(family.device))
        if predictions.teacher_null is not None and predictions.student_null is not None:
            guidance = rc.guidance_loss(
                predictions.student, predictions.student_null, predictions.teacher, predictions.teacher_null
            )
        loss = (
            settings.output_weight * weight * output
            + settings.feature_weight * (weight * feature if settings.feature_weighting == "output" else feature)
            + settings.task_weight * task
            + settings.guidance_weight * weight * guidance
        )
        return {"loss": loss, "output": output, "feature": feature, "task": task, "guidance": guidance}

    @torch.no_grad()
    def direction(
        self, denoiser: nn.Module, sample: Sample, predictions: Predictions, moves: Moves, guidance_scale: float
    ) -> Tensor:
        """The prediction `[B, C, h, w]` that moves a path: the followed model's, guided.

        Args:
            denoiser: the student's.
        """
        student = moves.by_student.to(self.family.device).view(-1, 1, 1, 1)
        direction = torch.where(student, predictions.student, predictions.teacher)
        if guidance_scale == 1:
            return direction
        if predictions.teacher_null is not None and predictions.student_null is not None:
            null = torch.where(student, predictions.student_null, predictions.teacher_null)
            return null + guidance_scale * (direction - null)
        followed = ((self.family.denoiser, ~moves.by_student), (denoiser, moves.by_student))
        for network, follows in followed:
            rows = (moves.on_path & follows).nonzero().flatten()
            if len(rows):
                null = self._without_prompt(network, sample, rows)
                direction[rows] = null + guidance_scale * (direction[rows] - null)
        return direction

    def _without_prompt(self, denoiser: nn.Module, sample: Sample, rows: Tensor) -> Tensor:
        family = self.family
        with self.accelerator.autocast():
            timesteps = sample.timesteps[rows].to(family.device)
            return family.predict(denoiser, sample.x_t[rows], timesteps, family.encode([""] * len(rows)))
