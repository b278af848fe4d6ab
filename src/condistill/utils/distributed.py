"""Work and decisions of the main process in a run of several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def decide(accelerator: Any, question: Callable[[], bool]) -> bool:
    """Return the main process's answer to a question on every process.

    Args:
        question: a function that only the main process calls, so that all processes act on the same answer.
    """
    from accelerate.utils import broadcast_object_list

    answer = [question() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    return bool(answer[0])


def on_main_process(accelerator: Any, work: Callable[[], object]) -> None:
    """Call `work` on the main process, and make every process wait until it is done."""
    if accelerator.is_main_process:
        work()
    accelerator.wait_for_everyone()
