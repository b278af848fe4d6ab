"""A plan for people: three tables, and what they assume."""

from __future__ import annotations

from collections.abc import Mapping
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
    headings = ["", "parameters", "share", "GMACs", "share", "ms, planned"]
    table = _table("denoisers", *headings, *(["ms", "GiB"] if measured else []))
    for model in ({**teacher, "name": "teacher"}, *students):
        shares = [f"{model[key]:.1%}" if key in model else "" for key in ("share_params", "share_macs")]
        cells = [f"{model['params']:,}", shares[0], f"{model['macs'] / 1e9:,.1f}", shares[1]]
        cells.append(f"{model['latency_ms']:,.4g}")
        if measured:
            cells += [f"{model['measured_latency_ms']:,.4g}", f"{model['measured_memory_gib']:.2f}"]
        table.add_row(escape(model["name"]), *cells, style="bold" if model.get("of_recipe") else None)
    return table


def _cost(cost: Mapping[str, Any]) -> Table:
    device, training = cost["device"], cost["training"]
    count = f"{device['count']} x " if device["count"] > 1 else ""
    table = _table(f"cost on {count}{device['name']}", "", *training)
    rows: dict[str, tuple[str, str]] = {
        "steps x samples": ("{steps:,} x {batch_size:,}", ""),
        "TFLOPs per sample": ("{tflops:,.3g}", ""),
        "samples/s": ("{samples_per_sec:,.4g}", ""),
        "hours": ("{hours:,.4g}", ""),
    }
    for name, (form, _) in rows.items():
        cells = [form.format(**each, tflops=each["flops_per_sample"] / 1e12) for each in training.values()]
        table.add_row(name, *cells)
    for part, told in _PARTS.items():
        cells = [f"{each['memory_bytes'][part] / GIB:,.2f}" for each in training.values()]
        table.add_row(f"GiB: {told}", *cells, end_section=part == "total")
    if any("measured_memory_bytes" in each for each in training.values()):
        measured = [each.get("measured_memory_bytes") for each in training.values()]
        table.add_row("GiB: measured", *("" if each is None else f"{each / GIB:,.2f}" for each in measured))
    limit = device["memory_bytes"] / GIB
    table.add_row(f"fits in {limit:,.1f} GiB", *("yes" if each["fits"] else "[red]no[/]" for each in training.values()))
    cache, evaluation = cost["cache"], cost["evaluation"]
    table.caption_justify = "left"
    table.caption = (
        f"cache: {cache['images']:,} images, {cache['teacher_forwards']:,} forwards, {cache['disk_bytes'] / GIB:,.2f} "
        f"GiB of disk, {cache['hours']:,.4g} hours\n"
        f"evaluation: {evaluation['images']:,} images, {evaluation['hours']:,.4g} hours\n"
        f"in all: {cost['hours']:,.4g} hours, {cost['device_hours']:,.4g} device-hours"
    )
    return table
