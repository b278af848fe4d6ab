"""A training step without data: the trainer's forward, loss and update, on a device or on the meta device.

On a device the step is timed. On the meta device its memory is counted: gradients, features and recomputed layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.distill.loss_terms import PREDICTION_TERMS, Predictions, active_terms, weighted_sum
from condistill.distill.student import StudentForward
from condistill.distill.update import Update, build_average, build_optimizer
from condistill.profiling.forwards import MicroBatch
from condistill.students.derive import Student
from condistill.students.features import FeatureRecorder


def repeat_inputs(inputs: Any, count: int, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Return inputs of `count` samples on a device, from those of one: tensors with a batch of one are repeated.

    Args:
        inputs: keyword arguments of a denoiser, from `example_inputs`.
        dtype: of the floating-point tensors.
    """
    if isinstance(inputs, Mapping):
        return {name: repeat_inputs(value, count, device=device, dtype=dtype) for name, value in inputs.items()}
    if not isinstance(inputs, Tensor):
        return inputs
    shape = (count, *inputs.shape[1:]) if inputs.dim() and len(inputs) == 1 else tuple(inputs.shape)
    return torch.ones(shape, device=device, dtype=dtype if inputs.is_floating_point() else inputs.dtype)


def _predict(denoiser: ModelMixin, inputs: Mapping[str, Any]) -> Tensor:
    prediction: Tensor = denoiser(**inputs, return_dict=False)[0]
    return prediction


class SyntheticStep:
    """A training step of two networks on one device, with inputs of ones."""

    def __init__(
        self,
        teacher: ModelMixin,
        student: Student,
        settings: DistillSettings,
        inputs: Mapping[str, Any],
        batch: MicroBatch,
    ) -> None:
        """Put hooks on both networks; `release` removes them.

        Args:
            inputs: keyword arguments of both denoisers for one sample, from `example_inputs`.
        """
        self.teacher, self.settings, self.batch = teacher, settings, batch
        device = next(teacher.parameters()).device
        features = settings.loss.features if settings.loss.feature_weight > 0 else None
        pairs = student.pairs if features else ()
        self._recorder = FeatureRecorder([teacher.get_submodule(pair.teacher) for pair in pairs], features or "stages")
        self.trained = StudentForward(_predict, student, features=features).to(device).train().requires_grad_(True)
        if settings.gradient_checkpointing:
            student.denoiser.enable_gradient_checkpointing()
        self._teacher_inputs, self._student_inputs = (
            repeat_inputs(inputs, count, device=device, dtype=next(model.parameters()).dtype)
            for model, count in ((teacher, batch.teacher), (student.denoiser, batch.student))
        )
        teacher.requires_grad_(False)
        self._terms = [term for term in active_terms(settings.loss) if term.name in PREDICTION_TERMS]

    def forward_teacher(self) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's prediction and features."""
        with torch.no_grad(), self._recorder as recorder:
            prediction = _predict(self.teacher, self._teacher_inputs)
        features = [f[: self.batch.samples] for f in recorder.features]
        recorder.clear()
        return prediction[: self.batch.student], features

    def loss(
        self,
        teacher: Tensor,
        teacher_features: list[Tensor],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor:
        """Run the student, and return the mean loss.

        Args:
            teacher: the teacher's prediction, from `forward_teacher`.
            teacher_features: from `forward_teacher`.
        """
        with autocast():
            student, student_features = self.trained(self._student_inputs)
        count, with_unconditional = self.batch.samples, self.settings.loss.guidance_weight > 0
        predictions = Predictions(
            settings=self.settings.loss,
            teacher=teacher[:count],
            student=student[:count],
            teacher_unconditional=teacher[count:] if with_unconditional else None,
            student_unconditional=student[count:] if with_unconditional else None,
            teacher_features=teacher_features,
            student_features=[f[:count] for f in student_features],
            layer_weights=[1.0] * len(student_features),
        )
        values = {term.name: PREDICTION_TERMS[term.name](predictions) for term in self._terms}
        return weighted_sum(self._terms, values, torch.ones_like(values["output"])).mean()

    @cached_property
    def update(self) -> Update:
        """The update of the student; its optimiser and average are built when it is first needed."""
        optimizer = self.settings.optimizer
        parameters = [*self.trained.parameters()]
        return Update(
            self.trained,
            build_optimizer(self.trained, optimizer),
            build_average(self.trained, optimizer),
            lambda: nn.utils.clip_grad_norm_(parameters, optimizer.max_grad_norm),
        )

    def release(self) -> None:
        """Remove the hooks from both networks and all gradients, and leave the student ready to generate."""
        self._recorder.remove()
        self.trained.zero_grad(set_to_none=True)  # else a second step would not count them
        self.trained.close()
        denoiser = self.trained.denoiser
        denoiser.eval().requires_grad_(False)
        if self.settings.gradient_checkpointing:
            denoiser.disable_gradient_checkpointing()
