"""Measure what a LoRA changes: in the predictions of the teacher, and, re-indexed, in those of its student.

With d_T = teacher with LoRA - teacher and d_S = student with LoRA - student on the same noised latents and prompts, the
cosine of d_T and d_S says whether the LoRA does to the student what it does to the teacher, and |d_S| / |d_T| how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.export.lora.record import LoraEffect, Spread
from condistill.students.scores.calibration import Calibration, CalibrationBatch, calibration_batches
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher
from condistill.teachers.lora import LoraLayer, fused
from condistill.utils.hardware import default_device
from condistill.utils.text import first_line

INPUTS = 16
_BATCH = 4


@dataclass(frozen=True)
class EffectInputs:
    """What the effect is measured on."""

    cache: LatentCache | None
    """None: random latents and the empty prompt are the inputs."""
    seed: int = 0
    guidance_range: tuple[float, float] | None = None
    """Of the student, where the guidance scale is an input."""

    @property
    def origin(self) -> Literal["cache", "noise"]:
        """Where the latents are from."""
        return "cache" if self.cache is not None and len(self.cache) else "noise"

    def batches(self, family: Family) -> list[CalibrationBatch]:
        """Return the inputs, always the same but for the text encoder of the family."""
        if self.cache is not None and self.origin == "cache":
            calibration = Calibration(self.cache, self.seed, _BATCH, self.guidance_range)
            return list(calibration_batches(family, calibration, samples=INPUTS))
        return [self._noise(family, first) for first in range(0, INPUTS, _BATCH)]

    def _noise(self, family: Family, first: int) -> CalibrationBatch:
        generator = torch.Generator().manual_seed(self.seed + first)
        noise = torch.randn(_BATCH, *family.latent_shape, generator=generator).to(family.device)
        levels = (torch.arange(first, first + _BATCH, dtype=torch.float64) + 0.5) / INPUTS
        condition = family.encode([""] * _BATCH)
        if family.has_image_condition:
            condition = family.training_condition(condition, noise, torch.full((_BATCH,), 0.5, dtype=torch.float64))
        if self.guidance_range:
            condition = condition.with_guidance_scale(torch.full((_BATCH,), self.guidance_range[0]).double())
        timesteps = family.noise.timesteps(levels).to(family.device)
        return CalibrationBatch(noise, timesteps, condition, noise)


def measure_effects(
    teacher: TeacherSettings,
    student: Path,
    loras: Sequence[tuple[Sequence[LoraLayer], Sequence[LoraLayer]]],
    inputs: EffectInputs,
) -> list[LoraEffect | None]:
    """Return the effect of each LoRA; None for one that changes nothing in the predictions of either.

    Teacher and student are in memory one after the other.

    Args:
        student: directory of its denoiser.
        loras: layers of the teacher and those of the student, by LoRA.

    Raises:
        CondistillError: the teacher or the student cannot be loaded.
    """
    family = load_teacher(teacher, device=default_device())
    name, kind, dtype = family.denoiser_name, type(family.denoiser), family.dtype
    components = family.pipeline.components
    plain = inputs.batches(family)
    before, expected, batches = _predictions(family, plain), [], []
    for layers, _ in loras:
        reads_text = any(layer.component != name for layer in layers)
        with fused(layers, components):
            batches.append(inputs.batches(family) if reads_text else plain)
            expected.append(_predictions(family, batches[-1]) - before)
    try:
        denoiser: Any = kind.from_pretrained(student, use_safetensors=True, torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CondistillError(f"the student at {student} cannot be loaded: {first_line(error)}") from error
    device = family.device
    setattr(family.pipeline, name, denoiser.to(device).eval().requires_grad_(False))  # the teacher's is free now
    before, effects = _predictions(family, plain), []
    for (_, layers), change, batch in zip(loras, expected, batches, strict=True):
        with fused([layer for layer in layers if layer.component == name], {name: denoiser}):
            effects.append(effect_of(change, _predictions(family, batch) - before, inputs.origin))
    return effects


def effect_of(expected: Tensor, found: Tensor, origin: Literal["cache", "noise"]) -> LoraEffect | None:
    """Compare the changes `[N, ...]` of a teacher's predictions with those of its student's."""
    one, two = expected.flatten(1).double(), found.flatten(1).double()
    sizes = one.norm(dim=1), two.norm(dim=1)
    is_changed = (sizes[0] > 0) & (sizes[1] > 0)
    if not bool(is_changed.any()):
        return None
    cosines = torch.nn.functional.cosine_similarity(one, two, dim=1)[is_changed]
    ratios = (sizes[1] / sizes[0])[is_changed]
    return LoraEffect(inputs=len(cosines), origin=origin, direction=_spread(cosines), size=_spread(ratios))


def _spread(values: Tensor) -> Spread:
    return Spread(mean=float(values.mean()), lowest=float(values.min()), highest=float(values.max()))


@torch.inference_mode()
def _predictions(family: Family, batches: Sequence[CalibrationBatch]) -> Tensor:
    """Return the predictions `[N, C, h, w]` of the denoiser that is in the pipeline now, on the CPU."""
    denoiser = family.denoiser
    found = [family.predict(denoiser, batch.x_t, batch.timesteps, batch.condition).cpu() for batch in batches]
    return torch.cat(found)
