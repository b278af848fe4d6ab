"""How a teacher is usually sampled: the steps and the guidance scale of its own file, or of its pipeline's call."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condistill.errors import CondistillError
from condistill.teachers.noise.schedule import is_of_consistency_model
from condistill.teachers.traits import GuidanceSpec
from condistill.utils.text import shorten

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

SAMPLING_NAME = "sampling.json"
"""File in a pipeline's directory; diffusers ignores it."""
NO_GUIDANCE = 1.0
"""The guidance scale with which every pipeline evaluates its denoiser once per step, without the empty prompt."""
FEW_STEPS = 4
"""Steps of a distilled teacher whose name has no number of steps."""
_DISTILLED = re.compile(
    r"(?<![a-z])(turbo|lightning|lcm|tcd|schnell|sprint|dmd2?|pcm)(?![a-z])"
    r"|(?<![a-z])(hyper[-_ ]?(?:sd|flux))"  # not "hyper-realistic"
)
_STEPS = re.compile(r"(?<!\d)(\d{1,2})[ _-]?steps?(?![a-z])")
_OTHERWISE = {"num_inference_steps": 50, "guidance_scale": 7.5}
"""What is used for a pipeline whose call has no default."""


@dataclass(frozen=True)
class Origin:
    """Where a teacher comes from, as far as that says how it is sampled."""

    names: tuple[str, ...] = ()
    """Its hub name, or the name of its folder or file; and the names of its LoRA files."""
    sampling_file: Path | None = None
    """Its `sampling.json`, if it has one."""


@dataclass(frozen=True)
class DefaultSampling:
    """Steps and guidance scale for a teacher, where its user gives none."""

    num_inference_steps: int
    guidance_scale: float
    resolution: int | None = None
    """Height and width in pixels; None: the pipeline's default."""
    is_distilled: bool = False
    """Whether the teacher is distilled to few steps, such as a turbo model."""
    reason: str = ""
    """Where the numbers come from, for a line to the user."""


def default_sampling(
    pipeline: DiffusionPipeline, denoiser: ModelMixin, guidance: GuidanceSpec, origin: Origin
) -> DefaultSampling:
    """Return how a teacher is usually sampled; see `Family.default_sampling`.

    Its `sampling.json` comes first, then what is known of teachers that are distilled to few steps, then the defaults
    of the pipeline's own call.

    Raises:
        CondistillError: `sampling.json` cannot be read.
    """
    usual = _of_call(pipeline)
    if sign := next(_signs_of_distillation(pipeline, denoiser, guidance, origin), None):
        names = " ".join(origin.names).lower()
        steps = next((int(number) for number in _STEPS.findall(names) if int(number)), FEW_STEPS)
        is_embedded = guidance.mode(denoiser.config) == "embedded"
        scale = usual.guidance_scale if is_embedded else NO_GUIDANCE
        reason = f"the teacher is distilled to few steps: {sign}"
        usual = DefaultSampling(steps, scale, is_distilled=True, reason=reason)
    return usual if origin.sampling_file is None else _of_file(origin.sampling_file, usual)


def recorded_resolution(origin: Origin) -> int | None:
    """Return the resolution in a teacher's `sampling.json`; None where it has none.

    Raises:
        CondistillError: the file cannot be read.
    """
    if origin.sampling_file is None:
        return None
    resolution = _checked(origin.sampling_file, _read(origin.sampling_file), "resolution", None)
    return None if resolution is None else int(resolution)


def _of_call(pipeline: DiffusionPipeline) -> DefaultSampling:
    kind = type(pipeline)
    parameters = inspect.signature(kind.__call__).parameters
    values: dict[str, float] = {}
    for name, otherwise in _OTHERWISE.items():
        default = parameters[name].default if name in parameters else None
        values[name] = otherwise if default in (None, inspect.Parameter.empty) else float(default)
    steps, scale = int(values["num_inference_steps"]), float(values["guidance_scale"])
    return DefaultSampling(steps, scale, reason=f"the defaults of {kind.__name__}'s call")


def _of_file(file: Path, usual: DefaultSampling) -> DefaultSampling:
    data = _read(file)
    steps = _checked(file, data, "num_inference_steps", usual.num_inference_steps)
    scale = _checked(file, data, "guidance_scale", usual.guidance_scale)
    resolution = _checked(file, data, "resolution", None)
    return DefaultSampling(
        int(steps or usual.num_inference_steps),
        float(usual.guidance_scale if scale is None else scale),
        resolution=None if resolution is None else int(resolution),
        is_distilled=usual.is_distilled,
        reason=f"{SAMPLING_NAME} of the teacher",
    )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CondistillError(f"{file} cannot be read ({shorten(str(error))}); correct it or delete it") from error
    if not isinstance(data, dict):
        raise CondistillError(f'{file} must hold a JSON object, such as {{"num_inference_steps": 4}}; correct it')
    return data


def _checked(file: Path, data: Mapping[str, Any], name: str, otherwise: float | None) -> float | None:
    """Return a number of a sampling file, or `otherwise` where the file has none."""
    value = data.get(name)
    if value is None:
        return otherwise
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    is_scale = name == "guidance_scale"
    if not is_number or value < 0 or (not is_scale and (value < 1 or value != int(value))):
        allowed = "a number of 0 or more" if is_scale else "a whole number above 0"
        raise CondistillError(f"{file}: {name} is {shorten(repr(value), 60)}, and must be {allowed}; correct it")
    return float(value)


def _signs_of_distillation(
    pipeline: DiffusionPipeline, denoiser: ModelMixin, guidance: GuidanceSpec, origin: Origin
) -> Iterator[str]:
    """Yield what shows that a teacher is distilled to few steps, as part of a sentence."""
    kind = type(pipeline.scheduler).__name__
    if is_of_consistency_model(pipeline.scheduler):
        yield f"its scheduler is {kind}"
    if kind == "EulerAncestralDiscreteScheduler" and pipeline.scheduler.config.get("timestep_spacing") == "trailing":
        yield f"its scheduler is {kind} with trailing timesteps, as of turbo models"
    if guidance.config_key is not None and guidance.mode(denoiser.config) == "none":
        yield f"its denoiser has {guidance.config_key}: false, as that of FLUX.1-schnell"
    for name in origin.names:
        if found := _DISTILLED.search(name.lower()):
            yield f"{found[0]!r} in the name {shorten(name, 80)}"
