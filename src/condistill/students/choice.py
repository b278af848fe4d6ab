"""The short forms in which Python code chooses a student, and the teachers that it can be derived from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

from diffusers import DiffusionPipeline, ModelMixin
from pydantic import ValidationError

from condistill.config.sections import BlockPreset, StudentSettings, WidthPreset
from condistill.errors import CondistillError, nearest
from condistill.teachers.family import Family
from condistill.teachers.registry import family_of_pipeline

PRESETS: tuple[str, ...] = (*get_args(BlockPreset), *get_args(WidthPreset))
StudentChoice: TypeAlias = StudentSettings | str | float | Mapping[str, Any]
"""Settings, the name of a preset, a share of the channels (of a U-Net) or of the layers (of a transformer), or a
mapping with the keys of `student` in a recipe."""


def student_settings(choice: StudentChoice, *, can_cut_width: bool) -> StudentSettings:
    """Return the settings of a student.

    Args:
        can_cut_width: whether the teacher's denoiser is a U-Net; it decides what a number stands for.

    Raises:
        CondistillError: there is no such preset, or the values do not fit together.
    """
    if isinstance(choice, StudentSettings):
        return choice
    if isinstance(choice, str):
        if choice not in PRESETS:
            raise CondistillError(f"the student {choice!r} is no preset{nearest(choice, PRESETS)}")
        values: Mapping[str, Any] = {"preset": choice}
    elif isinstance(choice, int | float) and not isinstance(choice, bool):
        values = {"width" if can_cut_width else "depth": float(choice)}
    elif isinstance(choice, Mapping):
        values = choice
    else:
        raise CondistillError(
            f"a student cannot be chosen by a {type(choice).__name__}; give the name of a preset, a number such as "
            "0.5, a dict such as {'width': 0.5}, or StudentSettings"
        )
    try:
        return StudentSettings.model_validate(dict(values))
    except ValidationError as error:
        reasons = [
            ": ".join(filter(None, [".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")]))
            for each in error.errors()
        ]
        raise CondistillError(f"the student {choice!r} cannot be made: {'; '.join(reasons)}") from error


def denoiser_of(teacher: Family | DiffusionPipeline | ModelMixin) -> ModelMixin:
    """Return the denoiser of a teacher, which may be one itself.

    Raises:
        CondistillError: no family supports the pipeline.
    """
    if isinstance(teacher, Family):
        return teacher.denoiser
    if isinstance(teacher, DiffusionPipeline):
        return getattr(teacher, family_of_pipeline(type(teacher).__name__).denoiser_name)
    return teacher
