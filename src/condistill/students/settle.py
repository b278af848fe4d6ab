"""Settle a variant before its student is derived: a width or a depth in place of a target, and the scores.

Each result is computed once and kept in a file, so that a resumed run and all its processes derive the same student.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from pydantic import FiniteFloat, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError, CorruptError
from condistill.profiling.timing import forward_timer
from condistill.students.scores.calibration import Calibration, calibration_batches
from condistill.students.scores.channels import channel_importance
from condistill.students.scores.layers import layer_scores
from condistill.students.scores.record import Scores
from condistill.students.target import meet_target
from condistill.teachers.family import Family
from condistill.utils.atomic import atomic_file
from condistill.utils.distributed import on_main_process
from condistill.utils.text import first_line

SETTINGS_NAME = "student_settings.json"
IMPORTANCE_NAME = "channel_importance.safetensors"
LAYER_SCORES_NAME = "layer_scores.json"
_LAYER_SCORES = TypeAdapter(dict[str, list[FiniteFloat]])
T = TypeVar("T")


def settle_student(
    family: Family, settings: StudentSettings, calibration: Calibration, *, directory: Path, accelerator: Accelerator
) -> tuple[StudentSettings, Scores]:
    """Return the settings with a width or a depth in place of their target, and the scores they need.

    Layers are not scored where the cache is empty; a depth then keeps layers spread evenly.

    Args:
        directory: where the results are kept.

    Raises:
        CondistillError: no student meets the target.
        CorruptError: a file in `directory` cannot be read.
    """
    if settings.target is not None:
        settings = _compute_once(
            directory / SETTINGS_NAME, accelerator, lambda file: _choose(family, settings, file), _read_settings
        )
    importance, layers = None, None
    if (kind := settings.importance) != "weight_norm":
        importance = _compute_once(
            directory / IMPORTANCE_NAME,
            accelerator,
            lambda file: save_file(channel_importance(family, kind, calibration_batches(family, calibration)), file),
            _read_importance,
        )
    if settings.depth is not None and len(calibration.cache):
        layers = _compute_once(
            directory / LAYER_SCORES_NAME,
            accelerator,
            lambda file: _write_layer_scores(layer_scores(family, calibration_batches(family, calibration)), file),
            _read_layer_scores,
        )
    return settings, Scores(importance, layers)


def settled_student(settings: StudentSettings, directory: Path) -> tuple[StudentSettings, Scores]:
    """Return what `settle_student` returned when it was called with this directory; nothing is computed.

    Raises:
        CondistillError: a file is missing that it has written.
        CorruptError: a file cannot be read.
    """
    if settings.target is not None:
        settings = _read_kept(directory / SETTINGS_NAME, _read_settings)
    importance = None
    if settings.importance != "weight_norm":
        importance = _read_kept(directory / IMPORTANCE_NAME, _read_importance)
    file = directory / LAYER_SCORES_NAME
    is_scored = settings.depth is not None and file.is_file()
    return settings, Scores(importance, _read_kept(file, _read_layer_scores) if is_scored else None)


def _read_kept(file: Path, read: Callable[[Path], T]) -> T:
    if not file.is_file():
        raise CondistillError(f"{file} is missing; it says what the student keeps of its teacher")
    try:
        return read(file)
    except (ValueError, SafetensorError) as error:
        raise CorruptError(f"{file} is corrupt ({first_line(error)}); it says what the student keeps") from error


def _compute_once(file: Path, accelerator: Accelerator, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """Return what `read` finds in a file, which the main process writes if it is missing."""

    def compute() -> None:
        if not file.is_file():
            with atomic_file(file) as partial:
                write(partial)

    on_main_process(accelerator, compute)
    try:
        return read(file)
    except (ValueError, SafetensorError) as error:
        reason = first_line(error)
        raise CorruptError(f"{file} is corrupt ({reason}); delete it and run again to compute it again") from error


def _choose(family: Family, settings: StudentSettings, file: Path) -> None:
    assert settings.target is not None
    chosen = meet_target(
        family.denoiser,
        settings,
        size=family.latent_shape[1:],
        text_length=family.text_length,
        sec_per_forward=forward_timer(family) if settings.target.latency is not None else None,
    )
    file.write_text(chosen.model_dump_json() + "\n", encoding="utf-8")


def _read_settings(file: Path) -> StudentSettings:
    return StudentSettings.model_validate_json(file.read_text(encoding="utf-8"))


def _write_layer_scores(scores: dict[str, list[float]], file: Path) -> None:
    file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def _read_layer_scores(file: Path) -> dict[str, list[float]]:
    return _LAYER_SCORES.validate_json(file.read_bytes())


def _read_importance(file: Path) -> dict[str, Tensor]:
    importance: dict[str, Tensor] = load_file(file)
    if not importance:
        raise ValueError("it has no tensors")
    return importance
