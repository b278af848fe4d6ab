"""Signals that end a command: Ctrl-C (SIGINT), SIGTERM from a scheduler, SIGHUP from a terminal that was closed.

A command ends at once, with what is finished on disk, except in a training, which first writes a checkpoint. Schedulers
and launchers often send SIGTERM twice, to a group and to each of its processes: only a second Ctrl-C ends at once what
a first signal is ending already. A signal that is ignored, as SIGHUP is under nohup, stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Stopped(KeyboardInterrupt):
    """A signal has come, and the command ends."""

    def __init__(self, number: int, kept: str = "finished work is kept") -> None:
        """Keep the number of the signal, and what the user still has."""
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        cause = "interrupted" if self.number == signal.SIGINT else f"stopped by {signal.Signals(self.number).name}"
        return f"{cause}; {self.kept}: run the same command again to resume"

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal ended."""
        return 128 + self.number


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Raise `Stopped` wherever the main thread is when a signal comes."""

    def on_signal(number: int) -> None:
        raise Stopped(number)

    with _handlers(on_signal):
        yield


@contextmanager
def stop_later() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the signal that has come, or 0.

    A second Ctrl-C raises `Stopped` at once.
    """
    came: list[int] = []
    with _handlers(came.append):
        yield lambda: came[0] if came else 0


@contextmanager
def _handlers(on_first: Callable[[int], None]) -> Iterator[None]:
    """Call `on_first` with the number of the first signal; in another thread than the main one, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if number == getattr(signal, "SIGHUP", None):
            _leave_closed_terminal()
        if not came:
            came = True
            on_first(number)
        elif number == signal.SIGINT:
            raise Stopped(number)

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """Discard all further output if the terminal is gone, where each line would be an error."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            discarding = os.open(os.devnull, os.O_WRONLY)
            os.dup2(discarding, number)
            os.close(discarding)
