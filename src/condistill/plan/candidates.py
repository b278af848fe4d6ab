"""Students a teacher could have: those of the recipe, and every preset and share that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import nn

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.config.sections import BlockPreset, StudentSettings, WidthPreset
from condistill.errors import CondistillError
from condistill.profiling.macs import example_inputs
from condistill.profiling.shapes import ShapesOnly
from condistill.students.derive import Student, derive_student, student_shapes
from condistill.students.guidance import can_distill_guidance, guidance_config, guidance_kind_of_config
from condistill.students.target import meet_target
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import build_on_meta, parameters

POSSIBLE: dict[str, dict[str, Any]] = {
    **{preset: {"preset": preset} for preset in (*get_args(BlockPreset), *get_args(WidthPreset))},
    **{f"width {width:g}": {"width": width} for width in (0.9, 0.75, 0.25)},
    **{f"depth {depth:g}": {"depth": depth} for depth in (0.75, 0.5, 0.25)},
}
"""What is tried on every teacher, by name; widths beside those that presets stand for."""


@dataclass(frozen=True)
class Candidate:
    """A denoiser of shapes only, where it would be compared with its teacher, and what it costs."""

    name: str
    student: Student
    params: int
    macs: int
    """Multiply-accumulates of one forward of one sample."""
    convolutions: int
    """Those of `macs` that are convolutions."""

    @classmethod
    def of(cls, name: str, student: Student, skeleton: Skeleton) -> Candidate:
        """Count a student, at the size and the length of text of the teacher."""
        with torch.no_grad(), ShapesOnly() as counted:
            student.denoiser(**inputs_of(skeleton, student.denoiser))
        return cls(name, student, parameters(student.denoiser), counted.macs, counted.convolutions)

    @property
    def denoiser(self) -> Any:
        """On the meta device."""
        return self.student.denoiser

    @property
    def takes_guidance(self) -> bool:
        """Whether it takes its guidance scale as an input, as far as a config tells.

        A U-Net with a projection for it may also have one scale folded in.
        """
        return guidance_kind_of_config(self.denoiser) != "cfg"


def the_teacher(skeleton: Skeleton) -> Candidate:
    """The teacher's own denoiser, for comparison."""
    return Candidate.of("teacher", Student(skeleton.denoiser, (), (), nn.ModuleList()), skeleton)


def inputs_of(skeleton: Skeleton, denoiser: Any) -> dict[str, Any]:
    """One sample for a denoiser, at the teacher's size and length of text, on the meta device."""
    family = skeleton.family
    return example_inputs(denoiser, size=family.latent_shape[1:], text_length=family.text_length)


def own_students(skeleton: Skeleton, recipe: Recipe) -> dict[str, Candidate]:
    """The recipe's variants, by name; a target of latency is taken for one of multiply-accumulates.

    Raises:
        CondistillError: one of them cannot be made of the teacher.
    """
    denoisers: dict[str | None, Any] = {None: skeleton.denoiser}
    candidates: dict[str, Candidate] = {}
    for name, variant in recipe.variants.items():
        settings, distill = recipe.variant(name)
        try:
            size, text_length = skeleton.family.latent_shape[1:], skeleton.family.text_length
            settings = meet_target(denoisers[variant.teacher], settings, size=size, text_length=text_length)
            student = derive_student(
                denoisers[variant.teacher],
                settings,
                features=distill.loss.features,
                may_be_as_large=distill.draws_cheaper,
            )
        except CondistillError as error:
            raise CondistillError(f"the student {name!r} cannot be made: {error}") from error
        student = _with_guidance(student, distill)
        denoisers[name] = student.denoiser
        candidates[name] = Candidate.of(name, student, skeleton)
    return candidates


def _with_guidance(student: Student, settings: DistillSettings) -> Student:
    """With the projection that folded guidance needs in a U-Net."""
    denoiser = student.denoiser
    takes_none = guidance_kind_of_config(denoiser) == "cfg" and can_distill_guidance(denoiser)
    if settings.guidance_distillation is None or not takes_none:
        return student
    return replace(student, denoiser=build_on_meta(type(denoiser), guidance_config(denoiser)))


def possible_students(skeleton: Skeleton) -> Iterator[Candidate]:
    """Every preset, width and depth that fits the teacher, under the name of its setting; shapes, and no pairs."""
    for name, settings in POSSIBLE.items():
        try:
            denoiser = student_shapes(skeleton.denoiser, StudentSettings.model_validate(settings))
        except CondistillError:
            continue
        if parameters(denoiser) < parameters(skeleton.denoiser):
            yield Candidate.of(name, Student(denoiser, (), (), nn.ModuleList()), skeleton)
