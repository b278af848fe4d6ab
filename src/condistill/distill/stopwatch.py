"""The seconds that a training took, over all the runs of the command that it needed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from condistill.utils.record import RecordFile

TIME_NAME = "seconds.json"


class TrainingTime(RecordFile):
    """`seconds.json` of a training: its time up to a checkpoint."""

    format: Literal[2] = 2
    step: int
    """Optimiser steps that the checkpoint has."""
    train_sec: float


class Stopwatch:
    """Measures the seconds of a training up to its newest checkpoint."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: float | None = None

    def on_step(self, step: int, *, checkpoint: bool) -> None:
        """Note the time; call it before the first step, and after each step.

        Args:
            step: optimiser steps done.
            checkpoint: whether the newest checkpoint is of this step.
        """
        now = time.monotonic()
        if self._started is None:
            self._started = now - train_sec(self._directory, step)
        if checkpoint:
            TrainingTime(step=step, train_sec=now - self._started).write(self._directory / TIME_NAME)


def train_sec(directory: Path, step: int) -> float:
    """Return the seconds that a `Stopwatch` wrote in a directory; 0 if it wrote none, or only for a later step."""
    file = directory / TIME_NAME
    if not file.is_file():
        return 0.0
    written = TrainingTime.read(file, remedy="delete it to measure the time again")
    return written.train_sec if written.step <= step else 0.0
