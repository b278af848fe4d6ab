"""The student of a variant before its training: derived from the recipe and the kept scores, always the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from condistill.cache.latents import LatentCache
from condistill.pipelines.record import DenoiserSize
from condistill.profiling.macs import macs
from condistill.run.context import Run
from condistill.students.derive import Student, derive_student
from condistill.students.guidance import with_guidance
from condistill.students.scores.calibration import Calibration
from condistill.students.settle import settle_student
from condistill.teachers.family import Family
from condistill.utils.meta import parameters
from condistill.utils.weights import hold_weights, is_cast

_ALONE: Any = SimpleNamespace(num_processes=1, is_main_process=True)
"""In place of an accelerator where only the main process works."""


def derive_variant(run: Run, name: str, directory: Path, cache: LatentCache, *, alone: bool = False) -> Student:
    """Return the student of a variant, derived from the denoiser that the run's family has now.

    Args:
        directory: where the results that choose its layers and channels are kept.
        cache: the latents that layers and channels are scored over.
        alone: only this process derives it; otherwise all processes must call this.
    """
    family, recipe = run.family, run.recipe
    student, settings = recipe.variant(name)
    calibration = Calibration(cache, recipe.seed, recipe.cache.batch_size, settings.guidance_range)
    accelerator = _ALONE if alone else run.accelerator
    student, scores = settle_student(family, student, calibration, directory=directory, accelerator=accelerator)
    derived = derive_student(
        family.denoiser,
        student,
        scores=scores,
        seed=recipe.seed,
        features=settings.loss.features,
        may_be_as_large=settings.needs_fewer_evaluations,
    )
    return with_guidance(derived, family.denoiser, settings)


def initial_denoiser(run: Run, name: str, teacher: nn.Module, directory: Path, cache: LatentCache) -> nn.Module:
    """Return the denoiser of a variant before its training, in the dtype of the pipeline, on one process.

    Args:
        teacher: the denoiser that it is derived from.
        directory: see `derive_variant`.
        cache: see `derive_variant`.
    """
    with run.family.using(teacher):
        denoiser = derive_variant(run, name, directory, cache, alone=True).denoiser
    cast_weights(denoiser, run.family.dtype)
    return prepared(run.family, denoiser.to(run.family.device).eval().requires_grad_(False))


def cast_weights(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Give a denoiser weights of this dtype, except in layers that diffusers keeps in float32."""
    for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers()):
        if is_cast(denoiser, name, tensor):
            tensor.data = tensor.detach().to(dtype)


def prepared(family: Family, denoiser: Any) -> nn.Module:
    """Lay out a denoiser as the device computes fastest."""
    if family.device.type == "cpu":
        hold_weights(denoiser, channels_last=True)
    laid_out: nn.Module = denoiser
    return laid_out


def size_of(family: Family, denoiser: Any) -> DenoiserSize:
    """Return parameters and multiply-accumulates of a denoiser at the family's image size."""
    count = macs(denoiser, size=family.latent_shape[1:], text_length=family.text_length)
    return DenoiserSize(parameters=parameters(denoiser), macs=count)
