"""Students that a teacher could have: those of a recipe, and every preset, width and depth that fits it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from diffusers import ModelMixin
from torch import nn

from condistill.config.sections import BlockPreset, StudentSettings, WidthPreset
from condistill.errors import CondistillError
from condistill.profiling.shapes import ShapesOnly, example_inputs
from condistill.students.derive import Student, student_shapes
from condistill.students.guidance import guidance_kind_of_config
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import parameters

POSSIBLE: dict[str, StudentSettings] = {
    **{preset: StudentSettings(preset=preset) for preset in (*get_args(BlockPreset), *get_args(WidthPreset))},
    **{f"width {width:g}": StudentSettings(width=width) for width in (0.9, 0.75, 0.25)},
    **{f"depth {depth:g}": StudentSettings(depth=depth) for depth in (0.75, 0.5, 0.25)},
}
"""Settings that are tried on every teacher, by name; widths that no preset stands for."""


@dataclass(frozen=True)
class Candidate:
    """A denoiser on the meta device, the layers in which it is compared with its teacher, and its costs."""

    name: str
    student: Student
    params: int
    macs: int
    """Multiply-accumulates of one forward of one sample."""
    convolutions: int
    """Those of `macs` that are in convolutions."""
    saved: int
    """Numbers that the backward of one sample needs, about."""

    @classmethod
    def of(cls, name: str, student: Student, skeleton: Skeleton) -> Candidate:
        """Count the parameters and MACs of a student, at the teacher's latent size and text length."""
        with torch.no_grad(), ShapesOnly() as counted:
            student.denoiser(**teacher_inputs(skeleton, student.denoiser))
        return cls(name, student, parameters(student.denoiser), counted.macs, counted.convolutions, counted.saved)

    @property
    def denoiser(self) -> ModelMixin:
        """The denoiser, on the meta device."""
        return self.student.denoiser

    @property
    def takes_guidance(self) -> bool:
        """Whether the guidance scale is an input, according to the config.

        By its config, a U-Net that was distilled for one scale is the same as one that takes the scale.
        """
        return guidance_kind_of_config(self.denoiser) != "cfg"


def teacher_candidate(skeleton: Skeleton) -> Candidate:
    """Return the teacher's own denoiser, for comparison."""
    return Candidate.of("teacher", _without_pairs(skeleton.denoiser), skeleton)


def teacher_inputs(skeleton: Skeleton, denoiser: ModelMixin) -> dict[str, Any]:
    """Return one sample for a denoiser, at the teacher's latent size and text length, on the meta device."""
    family = skeleton.family
    return example_inputs(denoiser, size=family.latent_shape[1:], text_length=family.text_length)


def recipe_candidates(skeleton: Skeleton, students: Mapping[str, Student]) -> dict[str, Candidate]:
    """Return the students of a recipe as candidates, by name of the variant.

    Args:
        students: from `preflight`.
    """
    return {name: Candidate.of(name, student, skeleton) for name, student in students.items()}


def possible_students(skeleton: Skeleton) -> Iterator[Candidate]:
    """Yield the student of every preset, width and depth that fits the teacher, named after the setting."""
    for name, settings in POSSIBLE.items():
        try:
            denoiser = student_shapes(skeleton.denoiser, settings)
        except CondistillError:
            continue
        if parameters(denoiser) < parameters(skeleton.denoiser):
            yield Candidate.of(name, _without_pairs(denoiser), skeleton)


def _without_pairs(denoiser: ModelMixin) -> Student:
    return Student(denoiser, (), (), nn.ModuleList())
