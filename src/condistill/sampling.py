"""How a pipeline is meant to draw. diffusers has no place for it in a pipeline, so it lies beside one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SAMPLING_NAME = "sampling.json"
"""A file of the pipeline's directory; diffusers passes it over."""


@dataclass(frozen=True)
class Sampling:
    """How a model draws: with its pipeline's own scheduler, or with its family's solver."""

    num_inference_steps: int
    guidance_scale: float
    solver: bool = False

    def denoiser_calls(self, denoiser: nn.Module) -> int:
        """Samples through the denoiser for one image; guidance doubles them, unless it is folded in."""
        folded = getattr(denoiser.config, "time_cond_proj_dim", None) is not None
        return self.num_inference_steps * (2 if self.guidance_scale > 1 and not folded else 1)

    def to_json(self) -> str:
        """What `read_sampling` reads."""
        said = {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}
        return json.dumps(said) + "\n"


def read_sampling(pipeline: Path) -> Sampling:
    """How a pipeline's directory says it draws: 25 steps and the guidance of diffusers, 7.5, where it says nothing."""
    file = pipeline / SAMPLING_NAME
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Sampling(int(said.get("num_inference_steps", 25)), float(said.get("guidance_scale", 7.5)))
