"""The forward of the student in training: its prediction, and the features that are compared with the teacher's."""

from __future__ import annotations

from torch import Tensor, nn

from condistill.students.derive import Student
from condistill.students.features import FeatureKind, FeatureRecorder
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family


class StudentForward(nn.Module):
    """All trained parameters behind one forward, so that data parallelism sees all of them."""

    def __init__(self, family: Family, student: Student, *, features: FeatureKind | None) -> None:
        """Wrap a student; `features` are the features to record, None: none."""
        super().__init__()
        self.denoiser = student.denoiser
        self.maps = student.maps if features else nn.ModuleList()
        layers = [student.denoiser.get_submodule(pair.student) for pair in student.pairs] if features else []
        self._recorder = FeatureRecorder(layers, features or "stages")
        self._predict = family.predict

    def forward(self, x_t: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """Return the prediction `[B, C, h, w]`, and the features at the teacher's width."""
        with self._recorder as recorder:
            prediction = self._predict(self.denoiser, x_t, timesteps, condition)
        features = [to_teacher(f) for to_teacher, f in zip(self.maps, recorder.features, strict=True)]
        return prediction, features
