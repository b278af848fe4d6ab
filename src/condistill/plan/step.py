"""A training step without data: the networks, losses and optimiser of a recipe, on a device or of shapes only.

On a device it is timed; on the meta device its memory is counted, gradients, features and recomputed layers included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.distill import random_conditioning as rc
from condistill.profiling.forwards import MicroBatch
from condistill.students.derive import Student
from condistill.students.features import FeatureRecorder

Inputs = Mapping[str, Any]


def repeat_inputs(inputs: Any, count: int, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Inputs of `count` samples on a device, from those of one: whatever has a batch of one is repeated."""
    if isinstance(inputs, Mapping):
        return {name: repeat_inputs(value, count, device=device, dtype=dtype) for name, value in inputs.items()}
    if not isinstance(inputs, Tensor):
        return inputs
    shape = (count, *inputs.shape[1:]) if inputs.dim() and len(inputs) == 1 else tuple(inputs.shape)
    kind = dtype if inputs.is_floating_point() else inputs.dtype
    return torch.ones(shape, device=device, dtype=kind)


class SyntheticStep:
    """Teacher and student on one device, and what trains the one by the other."""

    def __init__(
        self, teacher: Any, student: Student, settings: DistillSettings, inputs: Inputs, batch: MicroBatch
    ) -> None:
        """Take both networks as they are.

        Args:
            inputs: of one sample, as `Family.example_inputs` gives them; both networks take the same.
        """
        self.teacher, self.student, self.settings, self.batch = teacher, student.denoiser, settings, batch
        device = next(teacher.parameters()).device
        features = settings.loss.feature_weight > 0
        pairs = student.pairs if features else ()
        self.maps = student.maps.to(device) if features else nn.ModuleList()
        self._recorders = [
            FeatureRecorder([model.get_submodule(path) for path in paths], settings.loss.features)
            for model, paths in ((teacher, [p.teacher for p in pairs]), (self.student, [p.student for p in pairs]))
        ]
        self._inputs = [
            repeat_inputs(inputs, count, device=device, dtype=next(model.parameters()).dtype)
            for model, count in ((teacher, batch.teacher), (self.student, batch.student))
        ]
        teacher.requires_grad_(False)
        self.student.train().requires_grad_(True)
        if settings.gradient_checkpointing:
            self.student.enable_gradient_checkpointing()
        self._trained = [*self.student.parameters(), *self.maps.parameters()]
        self._update: tuple[torch.optim.Optimizer, EMAModel | None] | None = None

    def forward_teacher(self) -> tuple[Tensor, list[Tensor]]:
        """The teacher's prediction and features."""
        with torch.no_grad(), self._recorders[0] as recorder:
            prediction = self.teacher(**self._inputs[0], return_dict=False)[0]
        features = [f[: self.batch.samples] for f in recorder.features]
        recorder.clear()
        return prediction[: self.batch.student], features

    def loss(
        self,
        taught: Tensor,
        taught_features: list[Tensor],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor:
        """The student's forward, and its losses against what `forward_teacher` gave; the backward is the caller's."""
        with autocast(), self._recorders[1] as recorder:
            prediction = self.student(**self._inputs[1], return_dict=False)[0]
            features = [to_teacher(f) for to_teacher, f in zip(self.maps, recorder.features, strict=True)]
        self._recorders[1].clear()
        loss = rc.mse(prediction, taught).mean()
        if features:
            count = self.batch.samples
            loss = loss + rc.feature_loss([f[:count] for f in features], taught_features).mean()
        return loss

    def update(self) -> None:
        """Clip, step, average, and let go of the gradients."""
        if self._update is None:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(self._trained, lr=1e-9, fused=True)
            decay = self.settings.optimizer.ema_decay
            ema = EMAModel(self.student.parameters(), decay=decay, foreach=True) if decay else None
            self._update = optimizer, ema
        optimizer, average = self._update
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.step(self.student.parameters())

    def release(self) -> None:
        """Take the hooks off both networks, and leave them for drawing."""
        for recorder in self._recorders:
            recorder.remove()
        self.student.eval().requires_grad_(False)
        if self.settings.gradient_checkpointing:
            self.student.disable_gradient_checkpointing()
