"""The seconds that a training took, over all the runs of the command that it needed. Unknown is better than wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from condistill.errors import CondistillError
from condistill.utils.record import RecordFile

TIME_NAME = "seconds.json"


class TrainingTime(RecordFile):
    """`seconds.json` of a training: its time up to each of its checkpoints."""

    format: Literal[3] = 3
    train_sec: dict[str, float]
    """By the number of optimiser steps of a checkpoint."""
    devices: tuple[str, ...] = ()
    """On which it ran, each once, in order; empty where they are not known."""


class Stopwatch:
    """Measures the seconds of a training up to its newest checkpoint."""

    def __init__(self, directory: Path, *, device: str | None = None) -> None:
        self._directory, self._device = directory, device
        self._started: float | None = None
        self._is_unknown = False
        """Whether the training resumed from a checkpoint whose time is not known."""

    def on_step(self, step: int, *, checkpoint: bool) -> None:
        """Note the time; call it before the first step, and after each step.

        Args:
            step: optimiser steps done.
            checkpoint: whether the newest checkpoint is of this step.
        """
        now = time.monotonic()
        if self._started is None:
            before = train_sec(self._directory, step)
            self._is_unknown, self._started = before is None, now - (before or 0.0)
            self._write({number: sec for number, sec in _seconds(self._directory).items() if int(number) <= step})
        elif checkpoint and not self._is_unknown:
            self._write({**_seconds(self._directory), str(step): now - self._started})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of something that is not training out of the seconds, such as that of previews."""
        began = time.monotonic()
        try:
            yield
        finally:
            if self._started is not None:
                self._started += time.monotonic() - began

    def _write(self, train_sec: dict[str, float]) -> None:
        devices = tuple(dict.fromkeys(filter(None, (*devices_of(self._directory), self._device))))
        TrainingTime(train_sec=train_sec, devices=devices).write(self._directory / TIME_NAME)


def train_sec(directory: Path, step: int) -> float | None:
    """Return the seconds that a training took up to a checkpoint; None if they are not known."""
    return _seconds(directory).get(str(step)) if step else 0.0


def devices_of(directory: Path) -> tuple[str, ...]:
    """Return the devices on which a training ran; none where they are not known."""
    return _read(directory).devices


def _seconds(directory: Path) -> dict[str, float]:
    return {step: sec for step, sec in _read(directory).train_sec.items() if step.isdecimal()}


def _read(directory: Path) -> TrainingTime:
    """Return what a `Stopwatch` wrote; an empty record where its file is missing or damaged."""
    try:
        return TrainingTime.read(directory / TIME_NAME, remedy="the time is not known")
    except (CondistillError, OSError, ValueError):
        return TrainingTime(train_sec={})
