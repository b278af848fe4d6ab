"""Print a plan: tables of denoisers and of training, lines about the other stages, and the assumptions."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from condistill.plan.loading import lines_by_student
from condistill.plan.record import DenoiserCost, DevicePlan, Plan, RunCost, StageMemory, StudentPlan, TrainingCost
from condistill.utils.format import byte_size, duration, percent, si_quantity, significant
from condistill.utils.terminal import cell, print_line

_MEMORY_PARTS = {
    "process": "process",
    "teacher": "teacher",
    "other_components": "rest of its pipeline",
    "student": "student",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "ema": "average of weights",
    "activations": "activations",
    "total": "total",
}
"""Fields of `TrainingMemory`, and their names in the table."""


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan."""
    teacher = plan.teacher
    channels, height, width = teacher.latent_shape
    print_line(
        console,
        f"{teacher.name}: {teacher.family}, {teacher.denoiser}, latents of {channels}x{height}x{width}, "
        f"{teacher.text_length} tokens of text",
    )
    others = [f"{name} {count:,}" for name, count in teacher.components.items() if count != teacher.params]
    if others:
        print_line(console, f"other components: {', '.join(others)}")
    console.print(_denoisers(plan))
    console.print(_ladder(plan))
    print_line(console, "where students load:")
    for line in lines_by_student({student.name: student.loads_in for student in plan.students}):
        print_line(console, line)
    console.print(_training(plan.cost))
    console.print(_memory(plan.cost))
    for line in _stages(plan.cost):
        print_line(console, line)
    for line in plan.warnings:
        print_line(console, "warning: ", style="yellow", end="")
        print_line(console, line)
    print_line(console, "assumed:")
    for line in plan.assumptions:
        print_line(console, f"- {line}")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _denoisers(plan: Plan) -> Table:
    measured = plan.teacher.measured_latency_ms is not None
    headings = ["", "parameters", "share", "MACs", "share"]
    table = _table("denoisers", *headings, *(["time", "memory"] if measured else ["time, planned"]))
    table.add_row("teacher", *_costs(plan.teacher), style=None)
    for student in plan.students:
        table.add_row(cell(student.name), *_costs(student), style="bold" if student.of_recipe else None)
    return table


def _costs(model: DenoiserCost) -> list[str]:
    """Return the cells of a denoiser, without its name."""
    params, macs = (
        (percent(model.share_params, 1), percent(model.share_macs, 1)) if isinstance(model, StudentPlan) else ("", "")
    )
    cells = [f"{model.params:,}", params, si_quantity(model.macs), macs]
    if model.measured_latency_ms is None or model.measured_memory_bytes is None:
        return [*cells, duration(model.latency_ms / 1000)]
    return [*cells, duration(model.measured_latency_ms / 1000), byte_size(model.measured_memory_bytes)]


def _ladder(plan: Plan) -> Table:
    """Return what the training of each student costs, with the recipe's other settings."""
    cost = plan.cost
    first = next(iter(cost.training.values()))
    headings = ["", "memory", "fits", "per step", f"{first.steps:,} steps"]
    budget = None if cost.budget_hours is None else f"steps in {_hours(cost.budget_hours)}"
    table = _table("training of each student", *headings, *([budget] if budget else []))
    for student in plan.students:
        cells = [byte_size(student.training_memory_bytes), _yes_or_no(student.fits), duration(student.sec_per_step)]
        cells.append(_hours(student.training_hours))
        if student.steps_in_budget is not None:
            cells.append(f"{student.steps_in_budget:,}")
        table.add_row(cell(student.name), *cells, style="bold" if student.of_recipe else None)
    return table


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "[red]no[/]"


def _memory(cost: RunCost) -> Table:
    """Return the peak of memory of each stage."""
    per = " of each process" if cost.device.count > 1 else ""
    on_host = all(stage.device == stage.host for _, stage in _stages_of(cost))
    table = _table(f"peak of memory{per}", "", *(["host"] if on_host else ["device", "host"]))
    for name, stage in _stages_of(cost):
        table.add_row(name, *([] if on_host else [byte_size(stage.device)]), byte_size(stage.host))
    return table


def _stages_of(cost: RunCost) -> list[tuple[str, StageMemory]]:
    return [(name, getattr(cost.memory, name)) for name in type(cost.memory).model_fields]


def _training(cost: RunCost) -> Table:
    table = _table(f"training on {cell(_devices(cost.device))}", "", *map(cell, cost.training))
    trainings = cost.training.values()
    rows: dict[str, Callable[[TrainingCost], str]] = {
        "steps": lambda training: f"{training.steps:,}",
        "samples per step": lambda training: f"{training.batch_size:,} by {training.micro_batch_size:,}",
        "FLOPs per sample": lambda training: si_quantity(training.flops_per_sample),
        "samples/s": lambda training: significant(training.samples_per_sec),
        "time": lambda training: _hours(training.hours),
        "previews in it": lambda training: _hours(training.preview_hours),
        "checkpoints": lambda training: byte_size(training.checkpoint_bytes),
    }
    for name, written in rows.items():
        table.add_row(name, *map(written, trainings))
    for part, name in _MEMORY_PARTS.items():
        if part == "process" and not any(each.memory_bytes.process for each in trainings):
            continue
        table.add_row(f"memory: {name}", *(byte_size(getattr(each.memory_bytes, part)) for each in trainings))
    measured = [each.measured_memory_bytes for each in trainings]
    if any(count is not None for count in measured):
        table.add_row("memory: measured", *("" if count is None else byte_size(count) for count in measured))
    fits = (_yes_or_no(each.fits) for each in trainings)
    table.add_row(f"fits in {byte_size(cost.device.memory_bytes)}", *fits)
    return table


def _stages(cost: RunCost) -> list[str]:
    """Return a line about each stage that has no table, and about the whole run."""
    cache, evaluation = cost.cache, cost.evaluation
    parts = [f"{name} {byte_size(size)}" for name, size in cost.disk.model_dump(exclude={"total"}).items() if size]
    return [
        f"cache: {cache.images:,} images with {cache.teacher_forwards:,} forwards of the teacher, "
        f"{byte_size(cache.disk_bytes)} of disk, {_hours(cache.hours)}",
        f"evaluation: {evaluation.images:,} images, {_hours(evaluation.hours)}",
        f"disk: {byte_size(cost.disk.total)}: {', '.join(parts)}",
        f"in total: {_hours(cost.hours)}, {significant(cost.device_hours)} device-hours",
    ]


def _devices(device: DevicePlan) -> str:
    return f"{device.count} x {device.name}" if device.count > 1 else device.name


def _hours(hours: float) -> str:
    return duration(3600 * hours)
