"""The forward of the student in training: its prediction, and the features that are compared with the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from condistill.config.distill import FeatureKind
from condistill.students.derive import Student
from condistill.students.features import FeatureRecorder

Predict = Callable[..., Tensor]
"""Runs a denoiser on inputs and returns its prediction, as `Family.predict` does."""


class StudentForward(nn.Module):
    """All trained parameters behind one forward, so that data parallelism sees all of them."""

    def __init__(self, predict: Predict, student: Student, *, features: FeatureKind | None) -> None:
        """Wrap a student.

        Args:
            predict: called with the denoiser and the inputs of the forward.
            features: the features to record; None: none.
        """
        super().__init__()
        self.denoiser = student.denoiser
        self.maps = student.maps if features else nn.ModuleList()
        layers = [student.denoiser.get_submodule(pair.student) for pair in student.pairs] if features else []
        self._recorder = FeatureRecorder(layers, features or "stages")
        self._predict = predict

    def forward(self, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
        """Return the prediction `[B, C, h, w]`, and the features at the teacher's width.

        Args:
            inputs: x_t, timesteps and condition, for `Family.predict`.
        """
        with self._recorder as recorder:
            prediction = self._predict(self.denoiser, *inputs)
        features = [to_teacher(f) for to_teacher, f in zip(self.maps, recorder.features, strict=True)]
        recorder.clear()  # the backward frees features that nothing else holds
        return prediction, features

    def close(self) -> None:
        """Remove the hooks from the denoiser."""
        self._recorder.remove()
