"""Print what a run will cost, and ask before a long one."""

from __future__ import annotations

import sys

import typer

from condistill.errors import CondistillError
from condistill.plan.make import plan_cost
from condistill.plan.record import RunCost
from condistill.run.context import Run
from condistill.utils.format import byte_size, duration

LONG_HOURS = 24.0
"""A run that takes longer is confirmed, on a terminal."""


def show_cost(run: Run, *, confirm: bool) -> None:
    """Print the planned time, memory and disk of a whole run.

    Args:
        confirm: whether to ask, on a terminal, before a run of more than `LONG_HOURS`.

    Raises:
        CondistillError: the answer is no; nothing was written.
    """
    cost = plan_cost(run.recipe, count=run.accelerator.num_processes)
    for line in cost_lines(cost):
        run.say(line)
    if not all(training.fits for training in cost.training.values()):
        run.say(
            "warning: the training is planned to need more memory than the device has; lower "
            "distill.micro_batch_size, or use gradient_checkpointing or a smaller student",
            style="yellow",
        )
    if confirm and cost.hours > LONG_HOURS and _is_interactive() and not _confirmed(cost):
        raise CondistillError(
            "nothing was started; a shorter recipe: `condistill init` with --budget and --device; a test of the "
            "set-up: --quick; to start without a question: --yes"
        )


def cost_lines(cost: RunCost) -> list[str]:
    """Return the planned time by stage, and the memory and disk."""
    hours = sum(training.hours for training in cost.training.values())
    times = {"cache": cost.cache.hours, "training": hours, "evaluation": cost.evaluation.hours}
    parts = ", ".join(f"{name} {duration(3600 * time)}" for name, time in times.items())
    stages = {name: getattr(cost.memory, name) for name in type(cost.memory).model_fields}
    stage = max(stages, key=lambda name: stages[name].device)
    host = max(each.host for each in stages.values())
    on_host = "" if stages[stage].device == stages[stage].host else f", and {byte_size(host)} of the machine's"
    devices = f"{cost.device.count} x {cost.device.name}" if cost.device.count > 1 else cost.device.name
    return [
        f"planned on {devices}: about {duration(3600 * cost.hours)} ({parts})",
        f"memory: {byte_size(stages[stage].device)} of {byte_size(cost.device.memory_bytes)} ({stage}){on_host}; disk: "
        f"{byte_size(cost.disk.total)} ({byte_size(cost.disk.latents)} of latents, {byte_size(cost.disk.checkpoints)} "
        "of checkpoints)",
    ]


def _is_interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _confirmed(cost: RunCost) -> bool:
    return typer.confirm(f"this takes about {duration(3600 * cost.hours)}; start?", err=True)
