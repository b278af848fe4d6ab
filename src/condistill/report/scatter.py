"""Score against cost as SVG: a point per model, with the 95 % interval of its score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.record import ModelRecord
from condistill.report.plots import LIGHT, MARKERS, Ink, new_axes, roomy, svg_bytes
from condistill.utils.format import duration, quantity, si_quantity
from condistill.utils.text import shorten

_SIZE_INCHES = (3.4, 2.7)
_MARGINS = (0.19, 0.18, 0.97, 0.96)
_MOST_NAMES = 8
_LINE = 0.09
"""Height of a line of text, as a share of the axis."""
_LOGARITHMIC = 30.0
"""The ratio of the largest cost to the smallest from which on the axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One axis of cost."""

    name: str
    """A part of file names."""
    label: str
    read: Callable[[ModelRecord], float]
    write: Callable[[float], str]


COSTS = (
    Cost("parameters", "Parameters", lambda model: model.size.parameters, quantity),
    Cost("macs", "MACs per step", lambda model: model.size.macs, si_quantity),
    Cost("evaluations", "Denoiser evaluations per image", lambda m: m.sampling.denoiser_evaluations, quantity),
    Cost("latency", "Time per image", lambda model: model.speed.sec_per_image, lambda value: duration(value, 2)),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One model: its cost and its score."""

    name: str
    cost: float
    score: Score
    colour: int | None
    """Its index in the palette; None for the teacher."""


def points_of(
    models: Mapping[str, ModelRecord], split: str, metric: type[Metric], cost: Cost, colours: Mapping[str, int | None]
) -> list[Point]:
    """Return a point per model that has a score, in the order of the models."""
    scored = ((name, model, model.score(split, metric)) for name, model in models.items())
    return [Point(name, cost.read(model), score, colours.get(name)) for name, model, score in scored if score]


def describe(points: Sequence[Point], metric: type[Metric], cost: Cost) -> str:
    """Return what a plot shows, for readers who do not see it."""
    write = metric.notation.text
    return "; ".join(
        f"{point.name} {write(point.score.value)}{interval_text(metric, point.score, ' (95 % interval {})')} at "
        f"{cost.write(point.cost)}"
        for point in points
    )


def interval_text(metric: type[Metric], score: Score, pattern: str = "{}") -> str:
    """Return the 95 % interval of a score as `0.31 to 0.35`, put into a pattern; empty where the score has none."""
    if score.low is None or score.high is None:
        return ""
    low, high = (metric.notation.number(end) for end in (score.low, score.high))
    return pattern.format(f"{low} to {high}")


def score_against_cost(
    points: Sequence[Point],
    metric: type[Metric],
    cost: Cost,
    *,
    other_seed: float | None = None,
    ink: Ink = LIGHT,
) -> bytes:
    """Plot the points with their intervals; each model has a colour and a shape.

    Args:
        other_seed: how much two images of the teacher from different noise differ; a dashed line.
    """
    from matplotlib.ticker import MaxNLocator, NullFormatter

    figure, axes = new_axes(ink, _SIZE_INCHES, _MARGINS if len(points) <= _MOST_NAMES else None)
    factor = metric.notation.factor
    for number, point in enumerate(points):
        colour = ink.teacher if point.colour is None else ink.colours[point.colour % len(ink.colours)]
        value, low, high = (factor * end for end in _ends(point.score))
        axes.errorbar(
            [point.cost],
            [value],
            yerr=[[max(value - low, 0.0)], [max(high - value, 0.0)]],
            fmt=MARKERS[number % len(MARKERS)],
            color=colour,
            markersize=7,
            capsize=3,
            label=point.name.replace("$", r"\$"),
        )
    if other_seed is not None:
        axes.axhline(factor * other_seed, color=ink.text, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) > _LOGARITHMIC * min(costs):
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.12 * max(*costs, 1e-9))
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: cost.write(value) if value > 0 else "0")
    bound = metric.upper_bound
    axes.set_ylim(*((0, 1.04 * factor * bound) if bound is not None else roomy(*axes.get_ylim())))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _name_points(figure, axes, points, ink, factor)
    axes.set_xlabel(cost.label)
    axes.set_ylabel(f"{metric.label} ({metric.notation.unit})" if metric.notation.unit else metric.label)
    return svg_bytes(figure)


def _name_points(figure: Any, axes: Any, points: Sequence[Point], ink: Ink, factor: float) -> None:
    """Write the name of each model next to its point, or in a legend where there are many."""
    if len(points) > _MOST_NAMES:
        figure.legend(frameon=False, labelcolor=ink.text, loc="outside lower center", ncols=2, fontsize=7)
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [to_axes.transform((point.cost, factor * point.score.value)) for point in points]
    heights: list[tuple[float, float]] = []
    for point, (x, y) in sorted(zip(points, places, strict=True), key=lambda pair: float(pair[1][1])):
        on_left = x > 0.6
        height = float(y)
        while any(abs(height - other) < _LINE and abs(x - near) < 0.5 for near, other in heights):
            height += _LINE
        heights.append((float(x), height))
        axes.annotate(
            shorten(point.name, 28).replace("$", r"\$"),
            (x, y),
            xycoords="axes fraction",
            xytext=(x + (-0.04 if on_left else 0.04), height),
            textcoords="axes fraction",
            ha="right" if on_left else "left",
            va="center",
            color=ink.text,
            fontsize=8,
        )


def _ends(score: Score) -> tuple[float, float, float]:
    """Return value, lower and upper end: the interval, or else one standard deviation over the seeds, or nothing."""
    if score.low is not None and score.high is not None:
        return score.value, score.low, score.high
    spread = score.spread or 0.0
    return score.value, score.value - spread, score.value + spread
