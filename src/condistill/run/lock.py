"""A lock on a run directory, so that only one command at a time writes to it."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from condistill.errors import CondistillError
from condistill.utils.record import RecordFile

_LOCK_NAME = "run.lock"
_HOLDER_NAME = "run.lock.json"


class Holder(RecordFile):
    """`run.lock.json`: the process that uses a run directory, or that used it when it was killed."""

    format: Literal[1] = 1
    pid: int
    host: str
    command: str
    since: str

    @classmethod
    def of(cls, directory: Path) -> Holder | None:
        """Return the process that uses a run directory, or that was killed while it did; None where there is none."""
        with contextlib.suppress(CondistillError, OSError):
            return cls.read(directory / _HOLDER_NAME, remedy="")
        return None

    @classmethod
    def present(cls) -> Holder:
        """Return the present process."""
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(pid=os.getpid(), host=socket.gethostname(), command=shlex.join(sys.argv)[:300], since=since)


class RunLock:
    """The lock of one run directory. The system releases it when the process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._lock = FileLock(directory / _LOCK_NAME)
        self._directory = directory

    def acquire(self) -> None:
        """Take the lock; does nothing if this process has it.

        Raises:
            CondistillError: another process has it; the message names the process.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CondistillError(
                f"{self._directory} is in use by {self._holder()}; wait until it ends, stop it, or choose another --out"
            ) from None
        except NotImplementedError:
            return  # a file system without locks
        Holder.present().write(self._directory / _HOLDER_NAME)

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self._lock.is_locked:
            (self._directory / _HOLDER_NAME).unlink(missing_ok=True)
            self._lock.release()

    def _holder(self) -> str:
        holder = Holder.of(self._directory)
        if holder is None:
            return "another command"
        return f"process {holder.pid} on {holder.host} since {holder.since}: {holder.command}"
