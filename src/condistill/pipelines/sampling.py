"""How a pipeline is meant to draw. diffusers has no place for it in a pipeline, so it lies beside one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from condistill.config.distill import ConsistencySettings, ProgressiveSettings
    from condistill.config.recipe import Recipe
    from condistill.teachers.family import Family

SAMPLING_NAME = "sampling.json"
"""A file of the pipeline's directory; diffusers passes it over."""


@dataclass(frozen=True)
class Sampling:
    """How a model draws, and what it learnt to draw in few steps by, if it did."""

    num_inference_steps: int
    guidance_scale: float
    few_steps: ProgressiveSettings | ConsistencySettings | None = None
    resolution: int | None = None
    """Height and width in pixels; None: the pipeline's own."""

    def scheduler(self, family: Family) -> Any:
        """What draws in place of the pipeline's own scheduler; None where that one does."""
        if self.few_steps is None:
            return None
        if self.few_steps.method == "progressive":
            return family.noise.solver
        return family.noise.consistency_solver(self.few_steps.solver_steps)

    def denoiser_calls(self, denoiser: nn.Module) -> int:
        """Samples through the denoiser for one image; guidance doubles them, unless it is folded in."""
        config: Any = denoiser.config
        asks_once = type(denoiser).__name__ == "FluxTransformer2DModel"
        folded = config.get("time_cond_proj_dim") is not None or asks_once
        return self.num_inference_steps * (2 if self.guidance_scale > 1 and not folded else 1)

    def to_json(self) -> str:
        """What `read_sampling` reads."""
        said: dict[str, Any] = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }
        return json.dumps(said | ({"resolution": self.resolution} if self.resolution else {})) + "\n"


def planned_sampling(recipe: Recipe, name: str | None) -> Sampling:
    """How the teacher (None) or a variant is drawn with: as it learnt to, else as `evaluate` says, else the cache.

    A student that is told its guidance scale is told the nearest of those that it learnt.
    """
    settings, cache = recipe.evaluate, recipe.cache
    steps = settings.num_inference_steps or cache.num_inference_steps
    guidance = cache.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    resolution = recipe.teacher.resolution
    if name is None:
        return Sampling(steps, guidance, resolution=resolution)
    distill = recipe.variant(name)[1]
    steps = distill.few_steps.num_inference_steps if distill.few_steps else steps
    for each in (name, *recipe.teachers(name)):  # guidance may have been folded in by one that it is made of
        guidance = recipe.variant(each)[1].nearest_guidance(guidance)
    return Sampling(steps, guidance, distill.few_steps, resolution)


def read_sampling(pipeline: Path) -> Sampling:
    """How a pipeline's directory says it draws: 25 steps and the guidance of diffusers, 7.5, where it says nothing."""
    file = pipeline / SAMPLING_NAME
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Sampling(
        int(said.get("num_inference_steps", 25)),
        float(said.get("guidance_scale", 7.5)),
        resolution=said.get("resolution"),
    )
