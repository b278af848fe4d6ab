"""How a pipeline is meant to be sampled. diffusers has no place for this, so it is in a file next to the pipeline's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from condistill.teachers import defaults
from condistill.utils.hashing import key_of

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from condistill.config.distill import ConsistencySettings, ProgressiveSettings
    from condistill.config.recipe import Recipe
    from condistill.teachers.family import Family


SAMPLING_NAME = defaults.SAMPLING_NAME
"""File in the pipeline's directory; diffusers ignores it."""
_CHECK = "condistill"
"""Key of the hash of the other values, by which an edited file differs from one that condistill wrote."""


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled, and the few-step method it was trained with, if any."""

    num_inference_steps: int
    guidance_scale: float
    few_steps: ProgressiveSettings | ConsistencySettings | None = None
    resolution: int | None = None
    """Height and width in pixels; None: the pipeline's default."""

    def scheduler(self, family: Family) -> SchedulerMixin | None:
        """Return the scheduler that replaces the pipeline's; None: the pipeline's is used."""
        if self.few_steps is None:
            return None
        if self.few_steps.method == "progressive":
            return family.noise.solver
        return family.noise.consistency_solver(self.few_steps.solver_steps)

    def to_json(self) -> str:
        """Return the content of the file that `Family.default_sampling` reads."""
        data = self._data()
        return json.dumps({**data, _CHECK: _check(data)}) + "\n"

    def may_replace(self, text: str) -> bool:
        """Return whether `to_json` loses nothing of a sampling file: condistill wrote it, or it has the same values."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(data, dict):
            return False
        check = data.pop(_CHECK, None)
        return check == _check(data) or data == self._data()

    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }
        return data | ({"resolution": self.resolution} if self.resolution else {})


def _check(data: Mapping[str, Any]) -> str:
    return key_of(dict(data))


def planned_sampling(recipe: Recipe, name: str | None) -> Sampling:
    """Return how the teacher (None) or a variant is sampled.

    Steps are those that the variant was trained for, else those of `evaluate`, else those of the cache. The guidance
    scale is that of `evaluate`, else of the cache; for a guidance-distilled student, the nearest that it was trained
    with.
    """
    settings, cache = recipe.evaluate, recipe.cache
    steps = settings.num_inference_steps or cache.num_inference_steps
    guidance_scale = cache.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    resolution = recipe.teacher.resolution
    if name is None:
        return Sampling(steps, guidance_scale, resolution=resolution)
    distill = recipe.variant(name)[1]
    steps = distill.few_steps.num_inference_steps if distill.few_steps else steps
    for variant in (name, *recipe.teachers(name)):  # its teacher may be guidance-distilled
        guidance_scale = recipe.variant(variant)[1].nearest_guidance(guidance_scale)
    return Sampling(steps, guidance_scale, distill.few_steps, resolution)
