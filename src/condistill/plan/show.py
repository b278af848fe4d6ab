"""A plan for people: three tables, and what they assume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

GIB = 2**30
_PARTS = {
    "teacher": "teacher",
    "other_components": "rest of its pipeline",
    "student": "student",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "ema": "average of weights",
    "activations": "activations",
    "total": "together",
}


def show_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan that `make_plan` made."""
    teacher, cost = plan["teacher"], plan["cost"]
    channels, height, width = teacher["latent_shape"]
    console.print(
        f"{teacher['name']}: {teacher['family']}, {teacher['denoiser']}, latents of {channels}x{height}x{width}, "
        f"{teacher['text_length']} tokens of text",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    others = [f"{name} {count:,}" for name, count in teacher["components"].items() if count != teacher["params"]]
    if others:
        console.print(f"beside it: {', '.join(others)}", markup=False, highlight=False, soft_wrap=True)
    console.print(_students(teacher, plan["students"]))
    console.print(_cost(cost))
    for line in _whole(cost):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in plan["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)
    console.print("assumed:", highlight=False)
    for line in plan["assumptions"]:
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _students(teacher: Mapping[str, Any], students: list[Mapping[str, Any]]) -> Table:
    measured = "measured_latency_ms" in teacher
    headings = ["", "parameters", "share", "MACs", "share"]
    table = _table("denoisers", *headings, *(["ms", "memory"] if measured else ["ms, planned"]))
    for model in ({**teacher, "name": "teacher"}, *students):
        shares = [f"{model[key]:.1%}" if key in model else "" for key in ("share_params", "share_macs")]
        cells = [f"{model['params']:,}", shares[0], _amount(model["macs"]), shares[1]]
        if measured:
            cells += [f"{model['measured_latency_ms']:,.4g}", _bytes(model["measured_memory_bytes"])]
        else:
            cells.append(f"{model['latency_ms']:,.4g}")
        table.add_row(escape(model["name"]), *cells, style="bold" if model.get("of_recipe") else None)
    return table


def _cost(cost: Mapping[str, Any]) -> Table:
    device, training = cost["device"], cost["training"]
    table = _table(f"training on {_devices(device)}", "", *training)
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "steps": lambda each: f"{each['steps']:,}",
        "samples a step": lambda each: f"{each['batch_size']:,} by {each['micro_batch_size']:,}",
        "FLOPs a sample": lambda each: _amount(each["flops_per_sample"]),
        "samples/s": lambda each: f"{each['samples_per_sec']:,.4g}",
        "time": lambda each: _time(each["hours"]),
        "checkpoints": lambda each: _bytes(each["checkpoint_bytes"]),
    }
    for name, tell in rows.items():
        table.add_row(name, *map(tell, training.values()))
    for part, told in _PARTS.items():
        table.add_row(f"memory: {told}", *(_bytes(each["memory_bytes"][part]) for each in training.values()))
    if any("measured_memory_bytes" in each for each in training.values()):
        table.add_row("memory: measured", *(_bytes(each["measured_memory_bytes"]) for each in training.values()))
    table.add_row(
        f"fits in {_bytes(device['memory_bytes'])}",
        *("yes" if each["fits"] else "[red]no[/]" for each in training.values()),
    )
    return table


def _whole(cost: Mapping[str, Any]) -> list[str]:
    cache, evaluation = cost["cache"], cost["evaluation"]
    return [
        f"cache: {cache['images']:,} images by {cache['teacher_forwards']:,} forwards of the teacher, "
        f"{_bytes(cache['disk_bytes'])} of disk, {_time(cache['hours'])}",
        f"evaluation: {evaluation['images']:,} images, {_time(evaluation['hours'])}",
        f"in all: {_time(cost['hours'])}, {cost['device_hours']:,.4g} device-hours",
    ]


def _devices(device: Mapping[str, Any]) -> str:
    return f"{device['count']} x {device['name']}" if device["count"] > 1 else str(device["name"])


def _amount(number: float) -> str:
    """A large number with the letter of its thousands."""
    power = min(max(int(math.log10(max(number, 1)) // 3), 0), 4)
    return f"{number / 1000**power:,.4g} {('', 'K', 'M', 'G', 'T')[power]}".rstrip()


def _bytes(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def _time(hours: float) -> str:
    for unit, length in (("h", 1), ("min", 60)):
        if hours * length >= 1:
            return f"{hours * length:,.1f} {unit}"
    return f"{hours * 3600:,.1f} s"
