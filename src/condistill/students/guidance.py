"""Guidance distillation: students that learn guided predictions, for one guidance scale or for a range of scales.

diffusers supports it through a config key of the denoiser (`GuidanceSpec.config_key`). With it, the pipelines evaluate
the denoiser once per step and give it the guidance scale, which a projection adds to the time embedding. While the
weights of that projection are 0, the scale has no effect: this is how a student for one scale is saved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from torch import nn

from condistill.config.distill import ConsistencySettings, DistillSettings
from condistill.errors import CondistillError
from condistill.students.derive import Student
from condistill.teachers.registry import family_of
from condistill.utils.meta import plain_config

GUIDANCE_EMBEDDING = 256
"""Width of the guidance scale's embedding, as in latent consistency models (arXiv 2310.04378)."""
GuidanceKind = Literal["cfg", "fixed", "embedded"]
"""How a denoiser is guided: by two evaluations per step, by one distilled scale, or by a scale that is an input."""


def guidance_kind(denoiser: ModelMixin) -> GuidanceKind:
    """Return how a denoiser is guided; `cfg` also where its pipeline does not guide it at all."""
    spec = family_of(denoiser).guidance
    if spec.mode(denoiser.config) != "embedded":
        return "cfg"
    projection = _projection(denoiser)
    return "embedded" if projection is None or bool(projection.weight.any()) else "fixed"


def guidance_kind_of_config(denoiser: ModelMixin) -> GuidanceKind | None:
    """Return how a denoiser without weights is guided; None: its config allows `fixed` and `embedded`."""
    spec = family_of(denoiser).guidance
    if spec.mode(denoiser.config) != "embedded":
        return "cfg"
    return "embedded" if spec.projection is None else None


def can_distill_guidance(denoiser: ModelMixin) -> bool:
    """Return whether diffusers can add a projection of the guidance scale to denoisers of this class."""
    return family_of(denoiser).guidance.projection is not None


def guidance_config(denoiser: ModelMixin) -> dict[str, Any]:
    """Return the config of a denoiser with a projection of the guidance scale."""
    key = family_of(denoiser).guidance.config_key
    assert key is not None
    return {**plain_config(denoiser), key: GUIDANCE_EMBEDDING}


def guidance_learnt(kind: GuidanceKind, denoiser: ModelMixin, settings: DistillSettings) -> GuidanceKind:
    """Return how the student of a teacher of this kind will be guided.

    Raises:
        CondistillError: the settings do not fit the teacher.
    """
    path = settings.path
    guides_path = path and path.guidance_scale != 1
    guides_again = settings.guidance_distillation or settings.loss.guidance_weight or guides_path
    if kind == "fixed" and guides_again:
        raise CondistillError(
            "the teacher is guidance-distilled already; leave out distill.guidance_distillation, "
            "distill.loss.guidance_weight and distill.path.guidance_scale"
        )
    if kind == "embedded" and not settings.guidance_range:
        raise CondistillError(
            "the guidance scale is an input of the teacher, so it must be an input of the student too; set "
            "distill.guidance_distillation to a range [low, high] of scales that the teacher supports"
        )
    if kind == "cfg" and not settings.guidance_distillation and isinstance(settings.few_steps, ConsistencySettings):
        raise CondistillError(
            "few_steps.method 'consistency' learns the ends of guided paths; set distill.guidance_distillation to a "
            "scale or a range, or give a guidance-distilled teacher"
        )
    if settings.guidance_distillation is None:
        return kind
    if kind == "cfg" and not can_distill_guidance(denoiser):
        raise CondistillError(
            "distill.guidance_distillation needs a denoiser that can take the guidance scale as an input, and a "
            f"{type(denoiser).__name__} cannot; leave it out"
        )
    return "embedded" if settings.guidance_range else "fixed"


def with_guidance(student: Student, teacher: ModelMixin, settings: DistillSettings) -> Student:
    """Return the student, prepared for the guidance that it will learn.

    A new projection starts at 0: a student that takes the guidance scale starts with unguided predictions. For one
    scale the projection has nothing to learn, so it stays at 0.

    Raises:
        CondistillError: the settings do not fit the teacher.
    """
    teacher_kind = guidance_kind(teacher)
    student_kind = guidance_learnt(teacher_kind, teacher, settings)
    scale, denoiser = settings.guidance_distillation, student.denoiser
    if scale is not None and teacher_kind == "cfg":
        denoiser = _add_projection(denoiser)
    projection = _projection(denoiser)
    if projection is not None:
        if teacher_kind != "embedded":
            nn.init.zeros_(projection.weight)
        projection.requires_grad_(student_kind == "embedded")
    elif scale is None:
        return student
    kept = student.kept
    if isinstance(scale, tuple):
        kept = (*kept, f"guidance: distilled for scales from {scale[0]:g} to {scale[1]:g}; the scale is an input")
    elif scale is not None:
        kept = (*kept, f"guidance: distilled for a scale of {scale:g}")
    return replace(student, denoiser=denoiser, kept=kept)


def _projection(denoiser: ModelMixin) -> nn.Linear | None:
    """Return the layer that projects the guidance scale; None where the denoiser has none."""
    spec = family_of(denoiser).guidance
    if spec.projection is None or spec.mode(denoiser.config) != "embedded":
        return None
    projection: nn.Linear = denoiser.get_submodule(spec.projection)
    return projection


def _add_projection(denoiser: ModelMixin) -> ModelMixin:
    """Return the denoiser with a new, randomly initialised projection of the guidance scale."""
    kind, spec = type(denoiser), family_of(denoiser).guidance
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        converted = kind.from_config(guidance_config(denoiser))
    missing, unexpected = converted.load_state_dict(denoiser.state_dict(), strict=False)
    assert missing == [f"{spec.projection}.weight"]
    assert not unexpected
    return converted.to(denoiser.device)
