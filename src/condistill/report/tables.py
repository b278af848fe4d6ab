"""Metrics as the rows and bars of the report; what no model has is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condistill.config.recipe import TEACHER
from condistill.evaluate.record import look, models, ratio, splits
from condistill.utils.format import BYTE_UNITS, SI_UNITS, percent, quantity, significant, times_as_fast

HEADINGS = {"seen": "Seen prompts", "unseen": "Unseen prompts", "all": "All prompts"}
_NOT_ATTRIBUTES = ("all_correct", "frechet_classifier", "latent_rmse")
_TIMER = 0.05
"""Relative difference of two times, or of two peaks of memory, that says nothing."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: its text, a smaller note, whether it is the best of the students."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    higher: bool
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `width` in percent of its track; `colour` is a class of the page, such as `c0`."""

    name: str
    text: str
    width: float
    colour: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    bars: list[Bar]


def seconds(value: float) -> str:
    """In seconds, or above two minutes in minutes, or above two hours in hours."""
    unit, name = next(
        (unit, name) for unit, name in ((3600, "h"), (60, "min"), (1, "s")) if value >= 2 * unit or unit == 1
    )
    return f"{significant(value / unit, 2)} {name}"


def gigabytes(value: float) -> str:
    return f"{significant(value, 2)} GB"


def macs(value: float) -> str:
    return quantity(value, SI_UNITS)


def _row(
    metrics: Mapping[str, Any],
    label: str,
    place: Sequence[str],
    write: Callable[[float], str],
    *,
    higher: bool = False,
    tolerance: float = 0.0,
    note: Callable[[str], str] = lambda _: "",
) -> Row | None:
    """One line over all models, None where no model has the figure.

    The best students are marked, unless no student is worse: those that read like the best or are within
    a relative tolerance of it.
    """
    values = {name: look(model, *place) for name, model in models(metrics).items()}
    if all(value is None for value in values.values()):
        return None
    mine = {name: value for name, value in values.items() if value is not None and name != TEACHER}
    best = (max if higher else min)(mine.values(), default=0.0)
    marked = {n for n, v in mine.items() if write(v) == write(best) or abs(v - best) <= tolerance * abs(best)}
    if len(marked) == len(mine):
        marked = set()
    cells = [
        Cell("–") if value is None else Cell(write(value), note(name), name in marked) for name, value in values.items()
    ]
    return Row(label, higher, cells)


def _group(title: str, rows: Iterable[Row | None]) -> list[Group]:
    there = [row for row in rows if row is not None]
    return [Group(title, there)] if there else []


def scores(metrics: Mapping[str, Any]) -> list[Group]:
    """Quality per split, each figure with its spread over seeds."""

    def row(label: str, split: str, key: str, write: Callable[[float], str], *, higher: bool = False) -> Row | None:
        def spread(name: str) -> str:
            value = look(metrics, "models", name, "spread", split, key)
            if value is None:
                return ""
            return f"± {100 * value:.1f}" if write is percent else f"± {significant(value, 2)}"

        return _row(metrics, label, (split, key), write, higher=higher, note=spread)

    groups = []
    for split in splits(metrics):
        rows = [
            row("All right", split, "all_correct", percent, higher=True),
            row("Fréchet distance", split, "frechet_classifier", significant),
            row("Latent RMSE", split, "latent_rmse", significant),
        ]
        groups += _group(HEADINGS[split], rows)
    return groups


def costs(metrics: Mapping[str, Any]) -> list[Group]:
    """Size and speed, each student's figure as a share of the teacher's."""

    def row(label: str, group: str, key: str, write: Callable[[float], str], *, tolerance: float = 0.0) -> Row | None:
        def share(name: str) -> str:
            part = ratio(metrics, name, group, key)
            return "" if part is None or name == TEACHER else percent(part)

        return _row(metrics, label, (group, key), write, tolerance=tolerance, note=share)

    def speed(name: str) -> str:
        time = look(metrics, "models", name, "speed", "relative_time")
        return "" if time is None or name == TEACHER else times_as_fast(time)

    return _group(
        "Size and speed",
        [
            row("Parameters", "size", "parameters", quantity),
            row("MACs per step", "size", "macs", macs),
            row("Denoiser calls per image", "sampling", "denoiser_calls", quantity),
            _row(metrics, "Time per image", ("speed", "sec_per_image"), seconds, tolerance=_TIMER, note=speed),
            row("Peak memory", "speed", "peak_memory_gb", gigabytes, tolerance=_TIMER),
            _row(metrics, "Time to train", ("compute", "train_sec"), seconds, tolerance=_TIMER),
        ],
    )


def attributes(metrics: Mapping[str, Any]) -> list[Group]:
    """Every attribute the classifier looked at, per split."""
    groups = []
    for split in splits(metrics):
        names = dict.fromkeys(key for model in models(metrics).values() for key in model.get(split) or {})
        rows = [
            _row(metrics, name.replace("_", " ").capitalize(), (split, name), percent, higher=True)
            for name in names
            if name not in _NOT_ATTRIBUTES
        ]
        groups += _group(HEADINGS[split], rows)
    return groups


def _chart(
    metrics: Mapping[str, Any],
    colours: Mapping[str, str],
    title: str,
    place: Sequence[str],
    write: Callable[[float], str],
    *,
    full: float | None = None,
) -> list[Chart]:
    """One bar per model; the longest track is `full`, or else the largest figure."""
    values = {name: look(model, *place) for name, model in models(metrics).items()}
    there = {name: value for name, value in values.items() if value is not None}
    full = full or max(there.values(), default=0.0)
    if not there or full <= 0:
        return []
    return [
        Chart(title, [Bar(n, write(v), round(min(100 * v / full, 100.0), 2), colours[n]) for n, v in there.items()])
    ]


def right_charts(metrics: Mapping[str, Any], colours: Mapping[str, str]) -> list[Chart]:
    charts = [
        _chart(metrics, colours, HEADINGS[split], (split, "all_correct"), percent, full=1.0)
        for split in splits(metrics)
    ]
    return [chart for found in charts for chart in found]


def cost_charts(metrics: Mapping[str, Any], colours: Mapping[str, str]) -> list[Chart]:
    def chart(title: str, group: str, key: str, write: Callable[[float], str]) -> list[Chart]:
        return _chart(metrics, colours, title, (group, key), write)

    return [
        *chart("Parameters of the denoiser", "size", "parameters", quantity),
        *chart("Multiply-accumulates per denoising step", "size", "macs", macs),
        *chart("Weights on disk", "size", "bytes", lambda v: quantity(v, BYTE_UNITS)),
        *chart("Time per image", "speed", "sec_per_image", seconds),
        *chart("Peak memory", "speed", "peak_memory_gb", gigabytes),
    ]
