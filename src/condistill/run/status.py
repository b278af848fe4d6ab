"""What a command is doing, in a file that another terminal can read while it runs."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from condistill.utils.atomic import partial_path
from condistill.utils.progress import Meter
from condistill.utils.record import RecordFile
from condistill.utils.text import shorten

STATUS_NAME = "status.json"
SIGN_OF_LIFE_SEC = 10.0
"""How often the file is written while nothing else happens."""
_WRITE_EVERY_SEC = 1.0

State = Literal["running", "finished", "stopped", "failed"]


class RunStatus(RecordFile):
    """`status.json` of a run directory: what its last command is doing, or how it ended."""

    format: Literal[1] = 1
    state: State = "running"
    reason: str = ""
    """Why the command stopped or failed."""
    pid: int
    host: str
    written: str
    """Date and time in ISO format, with the time zone."""
    stage: str = ""
    label: str = ""
    """The part of the stage, such as the name of a student."""
    done: int = 0
    total: int = 0
    """Of the part; 0 where its length is not known."""
    unit: str = ""
    """Plural name of a unit of `total`."""
    rate: float | None = None
    """Units per second."""
    left_sec: float | None = None
    """Seconds that remain of the part."""
    note: str = ""
    losses: dict[str, float] = Field(default_factory=dict)
    """The last losses of the training, by name."""


class StatusWriter:
    """Writes `status.json`, at most once per second. What cannot be written is left out: it never stops a run."""

    def __init__(self, directory: Path) -> None:
        """Describe the file of a run directory; nothing is written before `open`."""
        self._file = directory / STATUS_NAME
        self._is_open = False
        self._closed = threading.Event()
        self._lock = threading.RLock()
        """Held by a thread that changes the status or the file: the training, or the one that shows life."""
        self._written = -math.inf
        self._status = RunStatus(pid=os.getpid(), host=socket.gethostname(), written="")

    def open(self) -> None:
        """Begin to write, in a run directory that this command uses alone."""
        if self._is_open:
            return
        self._is_open = True
        self._write()
        threading.Thread(target=self._show_life, name="status", daemon=True).start()

    def _show_life(self) -> None:
        while not self._closed.wait(SIGN_OF_LIFE_SEC):
            self._write()

    def enter(self, stage: str) -> None:
        """Note that a stage begins."""
        self._set(stage=stage, label="", done=0, total=0, unit="", rate=None, left_sec=None, note="")
        self._write()

    def begin(self, label: str) -> None:
        """Note that work of unknown length begins."""
        self._set(label=label, done=0, total=0, unit="", rate=None, left_sec=None, note="")
        self._write()

    def advance(self, label: str, meter: Meter, note: str) -> None:
        """Note the progress of some work."""
        is_new = label != self._status.label or meter.done >= meter.total
        now = time.monotonic()
        if not is_new and now - self._written < _WRITE_EVERY_SEC:
            return
        progress = {"done": meter.done, "total": meter.total, "unit": meter.unit}
        self._set(label=label, rate=meter.rate, left_sec=meter.left_sec, note=note, **progress)
        self._write()

    def note_losses(self, losses: Mapping[str, float]) -> None:
        """Keep the last losses; they are written with the next progress."""
        self._set(losses={name: value for name, value in losses.items() if math.isfinite(value)})

    def close(self, error: BaseException | None) -> None:
        """Note how the command ended."""
        if error is None:
            self._set(state="finished", left_sec=None)
        else:
            is_stop = isinstance(error, KeyboardInterrupt)
            reason = str(error) or ("interrupted" if is_stop else type(error).__name__)
            self._set(state="stopped" if is_stop else "failed", reason=shorten(reason, 500), left_sec=None)
        self._closed.set()
        with self._lock:
            self._write()
            self._is_open = False

    def _set(self, **changes: object) -> None:
        with self._lock:
            self._status = self._status.model_copy(update=changes)

    def _write(self) -> None:
        """Replace the file at once, without a wait for the disk."""
        with self._lock, contextlib.suppress(OSError):
            if not self._is_open:
                return
            self._written = time.monotonic()
            self._set(written=datetime.now().astimezone().isoformat(timespec="seconds"))
            partial = partial_path(self._file)
            partial.write_text(self._status.model_dump_json(exclude_none=True) + "\n", encoding="utf-8")
            partial.replace(self._file)
