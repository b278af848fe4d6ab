"""Decisions and work of several processes: decided on the main process, with barriers outside of conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def decide(accelerator: Any, question: Callable[[], bool]) -> bool:
    """Return the main process's answer to a question on every process.

    Args:
        question: called on the main process only, so that all processes act on one answer.
    """
    from accelerate.utils import broadcast_object_list

    answer = [question() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    return bool(answer[0])


def on_main_process(accelerator: Any, work: Callable[[], object]) -> None:
    """Do some work on the main process while the others wait for it."""
    if accelerator.is_main_process:
        work()
    accelerator.wait_for_everyone()
