"""Guidance folded into a student: either one scale, which it learnt, or whichever scale it is told.

diffusers knows both by `time_cond_proj_dim` in a denoiser's config: its pipelines then ask once per step, and tell the
denoiser the scale, which a projection brings into the time embedding. Where that projection is 0 nothing is heard.
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
from condistill.utils.meta import plain_config

GUIDANCE_EMBEDDING = 256
"""Width of the guidance scale's embedding, as in latent consistency models (arXiv 2310.04378)."""
GuidanceKind = Literal["cfg", "fixed", "embedded"]


def guidance_kind(denoiser: ModelMixin) -> GuidanceKind:
    """How a denoiser is guided: by asking it twice, by one scale folded in, or by a scale that it is told."""
    if denoiser.config.get("guidance_embeds"):  # FLUX.1-dev
        return "embedded"
    projection = _projection(denoiser)
    if projection is None:
        return "cfg"
    return "embedded" if bool(projection.weight.any()) else "fixed"


def _can_fold(denoiser: Any) -> bool:
    """Whether diffusers' pipelines would draw with this denoiser, its guidance folded in, in one call a step."""
    return "time_cond_proj_dim" in denoiser.config


def _projection(denoiser: Any) -> Any:
    """The layer that hears the guidance scale in a U-Net, if it has one."""
    return getattr(getattr(denoiser, "time_embedding", None), "cond_proj", None)


def guidance_learnt(kind: GuidanceKind, denoiser: Any, settings: DistillSettings) -> GuidanceKind:
    """How the student of a teacher of this kind will be guided.

    Raises:
        CondistillError: the settings do not fit the teacher; says which `distill.guidance_distillation` does.
    """
    path = settings.path
    guided_path = path and path.guidance_scale != 1
    guided_again = settings.guidance_distillation or settings.loss.guidance_weight or guided_path
    if kind == "fixed" and guided_again:
        raise CondistillError(
            "guidance is folded into the teacher already; leave out distill.guidance_distillation, "
            "distill.loss.guidance_weight and distill.path.guidance_scale"
        )
    if kind == "embedded" and not settings.guidance_range:
        raise CondistillError(
            "the teacher is told its guidance scale, so its student must be as well; set "
            "distill.guidance_distillation to a "
            "range [low, high] of scales that the teacher knows"
        )
    if kind == "cfg" and not settings.guidance_distillation and isinstance(settings.few_steps, ConsistencySettings):
        raise CondistillError(
            "few_steps.method 'consistency' learns where guided paths end; set distill.guidance_distillation to a "
            "scale or a "
            "range, or give a teacher that has guidance folded in"
        )
    if settings.guidance_distillation is None:
        return kind
    if kind == "cfg" and not _can_fold(denoiser):
        raise CondistillError(
            "distill.guidance_distillation needs a denoiser that can be told a guidance scale, and "
            f"a {type(denoiser).__name__} cannot; leave it out"
        )
    return "embedded" if settings.guidance_range else "fixed"


def with_guidance(student: Student, teacher: ModelMixin, settings: DistillSettings) -> Student:
    """The student, made ready for the guidance it is to learn.

    A projection that is new is 0: a student that is told its scale begins by saying what its teacher says unguided,
    and for one scale alone there is nothing to learn, so that it stays 0.

    Raises:
        CondistillError: that does not fit the teacher.
    """
    taught_by = guidance_kind(teacher)
    learnt = guidance_learnt(taught_by, teacher, settings)
    fold, denoiser = settings.guidance_distillation, student.denoiser
    if fold is not None and taught_by == "cfg":
        denoiser = _with_projection(denoiser)
    projection = _projection(denoiser)
    if projection is not None:
        if taught_by != "embedded":
            nn.init.zeros_(projection.weight)
        projection.requires_grad_(learnt == "embedded")
    elif fold is None:
        return student
    kept = student.kept
    if isinstance(fold, tuple):
        kept = (*kept, f"guidance: scales from {fold[0]:g} to {fold[1]:g} are folded in; it is told which")
    elif fold is not None:
        kept = (*kept, f"guidance: a scale of {fold:g} is folded in")
    return replace(student, denoiser=denoiser, kept=kept)


def _with_projection(denoiser: ModelMixin) -> ModelMixin:
    """The same denoiser with a projection of the guidance scale, not yet set to anything."""
    kind: Any = type(denoiser)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        made = kind.from_config(plain_config(denoiser) | {"time_cond_proj_dim": GUIDANCE_EMBEDDING})
    missing, unexpected = made.load_state_dict(denoiser.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"]
    assert not unexpected
    converted: ModelMixin = made.to(denoiser.device)
    return converted
