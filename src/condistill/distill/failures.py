"""What a training that became infinite says, keeps and remembers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from condistill.config.distill import DistillSettings
from condistill.distill.checkpoints import list_checkpoints, step_of
from condistill.errors import CorruptError
from condistill.utils.atomic import remove
from condistill.utils.record import RecordFile

FAILURE_NAME = "failure.json"


class Failure(RecordFile):
    """`failure.json` of a training: where it became infinite; deleted once a training has passed this step."""

    format: Literal[2] = 2
    step: int
    """Optimiser steps done before the one that failed."""
    reason: str

    def notice(self) -> str:
        """Return a line for a training that starts again."""
        return f"warning: this training failed before ({self.reason}); with the same settings it may do so again"


def read_failure(directory: Path) -> Failure | None:
    """Return what made the last training in a directory fail, if it did and can be read."""
    file = directory / FAILURE_NAME
    try:
        return Failure.read(file, remedy="delete it") if file.is_file() else None
    except CorruptError:
        return None


def fall_back(directory: Path, failure: Failure, *, weights_are_bad: bool) -> str:
    """Write down a failure, and return a sentence on the checkpoint that the next training resumes from.

    Args:
        weights_are_bad: the loss itself is not finite, so a checkpoint of the failed step's weights is no use: it is
            deleted.
    """
    failure.write(directory / FAILURE_NAME)
    removed = ""
    if weights_are_bad:
        for path in list_checkpoints(directory):
            if step_of(path) == failure.step:
                remove(path)
                removed = f", and {path.name}, whose weights gave this loss, is deleted"
    kept = list_checkpoints(directory)
    if not kept:
        return f"There is no good checkpoint{removed}."
    return f"The checkpoint {kept[-1].name} is good and is kept{removed}."


def advice(settings: DistillSettings, step: int, *, teacher_dtype: torch.dtype) -> str:
    """Return what can be changed so that a training stays finite.

    Args:
        step: optimiser steps done before the one that failed.
        teacher_dtype: of the teacher's weights.
    """
    optimizer = settings.optimizer
    options = ["distill.mixed_precision: bf16"] if settings.mixed_precision == "fp16" else []
    if step == 0:  # the student has learned nothing yet, so its learning rate is not the cause
        options += [] if teacher_dtype == torch.float32 else ["teacher.dtype: float32"]
        options = options or ["condistill cache --verify, and an image of the teacher with condistill sample"]
        return f"The student has taken no step yet, so the teacher or the cache is the cause; try {_either(options)}."
    options.append(f"a distill.optimizer.learning_rate below {optimizer.learning_rate:g}")
    if optimizer.lr_scheduler == "constant":
        options.append("distill.optimizer.lr_scheduler: constant_with_warmup with warmup_steps")
    elif step <= optimizer.warmup_steps or not optimizer.warmup_steps:
        options.append(f"more distill.optimizer.warmup_steps than {optimizer.warmup_steps:,}")
    options.append(f"a distill.optimizer.max_grad_norm below {optimizer.max_grad_norm:g}")
    return f"Try {_either(options)}; a changed setting needs --update and trains from step 0."


def _either(options: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))
