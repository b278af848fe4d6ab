"""What a training asks of the two networks, so that methods are compared at equal cost."""

from __future__ import annotations

import json
import time
from pathlib import Path

from condistill.config.distill import ConsistencySettings, DistillSettings, ProgressiveSettings
from condistill.config.sections import CacheSettings
from condistill.utils.atomic import write_text

_FILE_NAME = "seconds.json"


def forwards_per_step(settings: DistillSettings, *, teacher_is_told: bool = False) -> tuple[float, float]:
    """Samples that pass forward through (teacher, student) in a step; the student's come with a backward.

    A guided path costs one forward more of the model that is followed, for every state on the path, unless the
    guidance loss has asked for the unconditional prediction already; folded guidance and progressive few steps ask
    the teacher more often, consistency the student once more. Of `follow: moving` it is the mean over the training.
    The student's extra forward has no backward, and is counted as if it had.

    Args:
        teacher_is_told: the teacher takes the guidance scale as an input, and is asked once for what is guided.
    """
    teacher = student = float(settings.batch_size * (2 if settings.guidance_weight else 1))
    if settings.fold_guidance and not teacher_is_told:
        teacher *= 2
    if isinstance(settings.few_steps, ProgressiveSettings):
        teacher *= settings.few_steps.teacher_steps
    elif isinstance(settings.few_steps, ConsistencySettings):
        student *= 2
    path = settings.path
    if path and path.guidance_scale != 1 and not settings.guidance_weight:
        by_student = {"teacher": 0.0, "student": 1.0, "moving": 0.5}[path.follow]
        teacher += settings.batch_size * path.share * (1 - by_student)
        student += settings.batch_size * path.share * by_student
    return teacher, student


def compute(
    settings: DistillSettings, cache: CacheSettings, *, teacher_is_told: bool = False, cache_is_guided: bool = True
) -> dict[str, float]:
    """Samples that pass forward through the networks in a whole training.

    Beside the two of the loop, `cache_forwards`: of the teacher, to draw the latents the training uses, if it does.

    Args:
        teacher_is_told: as `forwards_per_step` has it.
        cache_is_guided: guidance is not folded into what drew the cache, and asked it twice.
    """
    teacher, student = forwards_per_step(settings, teacher_is_told=teacher_is_told)
    per_image = cache.num_inference_steps * (2 if cache_is_guided and cache.guidance_scale > 1 else 1)
    return {
        "teacher_forwards": settings.steps * teacher,
        "student_forwards": settings.steps * student,
        "cache_forwards": float(cache.size * per_image) if settings.uses_cache else 0.0,
    }


class Stopwatch:
    """Seconds of a training up to its last checkpoint, over all the runs it took."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _FILE_NAME
        self._began: float | None = None

    def on_step(self, step: int, *, checkpoint: bool) -> None:
        """Call before the first step, and after each with whether a checkpoint was made of it."""
        now = time.monotonic()
        if self._began is None:
            self._began = now - train_sec(self._file.parent, step)
        if checkpoint:
            write_text(self._file, json.dumps({"step": step, "train_sec": now - self._began}) + "\n")


def train_sec(directory: Path, step: int) -> float:
    """Seconds noted in a directory by a `Stopwatch` that had come no further than `step`; 0 where there are none."""
    file = directory / _FILE_NAME
    if not file.is_file():
        return 0.0
    noted = json.loads(file.read_text(encoding="utf-8"))
    return float(noted["train_sec"]) if noted["step"] <= step else 0.0
