"""Stopping a training between two steps, on all processes at the same step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

_AGREE_EVERY = 10
"""Steps between two agreements of several processes, which make them wait for each other."""


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C, or a scheduler's SIGTERM, has come; a second one ends at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted.is_set
        return

    def on_interrupt(_signal: int, _frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_process(accelerator: Accelerator, step: int, *, interrupted: bool) -> bool:
    """Return whether any process was interrupted, the same on all. Several processes agree every few steps only."""
    if accelerator.num_processes == 1:
        return interrupted
    if step % _AGREE_EVERY:
        return False
    flag = torch.tensor(float(interrupted), device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum") > 0)
