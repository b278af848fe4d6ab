"""Derive every variant of a recipe on the meta device, and refuse the variants that a run could not make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diffusers import ModelMixin

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.students.derive import Student, derive_student
from condistill.students.features import layer_weights
from condistill.students.guidance import (
    GuidanceKind,
    can_distill_guidance,
    guidance_config,
    guidance_kind,
    guidance_kind_of_config,
    guidance_learnt,
)
from condistill.students.target import meet_target
from condistill.teachers.family import Family
from condistill.utils.meta import build_on_meta, plain_config

OnRefusal = Callable[[str, CondistillError], None]


def cannot_be_made(name: str, error: CondistillError) -> CondistillError:
    """Return an error that names the variant which cannot be made."""
    return CondistillError(f"the student {name!r} cannot be made: {error}")


def refuse(name: str, error: CondistillError) -> None:
    """Raise the error that names the variant which cannot be made."""
    raise cannot_be_made(name, error) from error


def derive_variants(recipe: Recipe, family: Family, *, on_refusal: OnRefusal = refuse) -> dict[str, Student]:
    """Return the student of every variant, on the meta device, by name.

    A target of latency is taken for a target of MACs. Everything about a student that can be refused without weights is
    refused here: its size, its features, its guidance and the timesteps that its training needs.

    Args:
        family: the teacher; only its shapes are read.
        on_refusal: called with the variant's name and the error where a run would refuse a variant whose shapes can be
            derived; by default the error is raised.

    Raises:
        CondistillError: a variant has no shapes, or was refused; the message names it.
    """
    size, text_length = family.latent_shape[1:], family.text_length
    teacher_denoiser = build_on_meta(type(family.denoiser), plain_config(family.denoiser))
    denoisers: dict[str | None, ModelMixin] = {None: teacher_denoiser}
    students: dict[str, Student] = {}
    for name, variant in recipe.variants.items():
        settings, distill = recipe.variant(name)
        teacher = denoisers[variant.teacher]
        try:
            settings = meet_target(teacher, settings, size=size, text_length=text_length)
            student = derive_student(
                teacher, settings, features=distill.loss.features, may_be_as_large=distill.needs_fewer_evaluations
            )
        except CondistillError as error:
            raise cannot_be_made(name, error) from error
        try:
            check_steps(family, distill)
            layer_weights(distill.loss.feature_layer_weights, student.pairs)
        except CondistillError as error:
            on_refusal(name, error)
        students[name] = _with_guidance_input(student, distill)
        denoisers[name] = students[name].denoiser
    if guidance_kind_of_config(teacher_denoiser) is not None:  # otherwise `check_guidance` needs the weights
        check_guidance(recipe, teacher_denoiser, on_refusal=on_refusal)
    return students


def check_guidance(recipe: Recipe, denoiser: ModelMixin, *, on_refusal: OnRefusal = refuse) -> None:
    """Check that the guidance of every variant fits its teacher's.

    Args:
        denoiser: the teacher's, with weights where its config alone does not say how it is guided.
        on_refusal: see `derive_variants`.

    Raises:
        CondistillError: a variant was refused; the message names it.
    """
    kinds: dict[str | None, GuidanceKind] = {None: guidance_kind(denoiser)}
    for name, variant in recipe.variants.items():
        kinds[name] = kinds[variant.teacher]
        try:
            kinds[name] = guidance_learnt(kinds[variant.teacher], denoiser, recipe.variant(name)[1])
        except CondistillError as error:
            on_refusal(name, error)


def check_steps(family: Family, settings: DistillSettings) -> None:
    """Check that the teacher has the timesteps of `path` and `few_steps`, and that paths can follow it.

    Raises:
        CondistillError: says which numbers of steps its timesteps can be divided into.
    """
    total = family.noise.total_timesteps
    path, few = settings.path, settings.few_steps
    if path and family.has_image_condition:
        raise CondistillError(
            f"distill.path is not for a teacher of family {family.name}: the part of the image that is kept does not "
            "move along with a state; leave out distill.path"
        )
    if path and path.num_inference_steps > total:
        raise CondistillError(
            f"path.num_inference_steps is {path.num_inference_steps}; the teacher has {total} timesteps"
        )
    if few:
        family.noise.check_few_steps(few)


def _with_guidance_input(student: Student, settings: DistillSettings) -> Student:
    """Return the student with the projection of the guidance scale that guidance distillation adds."""
    denoiser = student.denoiser
    has_none = guidance_kind_of_config(denoiser) == "cfg" and can_distill_guidance(denoiser)
    if settings.guidance_distillation is None or not has_none:
        return student
    return replace(student, denoiser=build_on_meta(type(denoiser), guidance_config(denoiser)))
