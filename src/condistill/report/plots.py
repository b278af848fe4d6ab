"""Loss curves and the plot of a sweep as SVG. matplotlib is used without global state; equal input, equal bytes."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condistill.distill.history import HistoryRecord
from condistill.utils.format import significant

Array = NDArray[np.float64]
History = Sequence[HistoryRecord]
"""The records of a training history, in the order of their steps."""

COLOURS = ("#0072B2", "#C65200", "#008560", "#BC5690", "#98700A")
COLOURS_DARK = ("#56B4E9", "#EE8052", "#2BBF94", "#DE9CC0", "#F0BC4A")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_POINTS = 160
_SIZE_INCHES = (5.0, 3.3)


@dataclass(frozen=True, slots=True)
class Ink:
    """The colours for one page background; `shades` is the part of the colour map that is visible on it."""

    text: str
    line: str
    teacher: str
    colours: tuple[str, ...]
    shades: tuple[float, float]


LIGHT = Ink(text="#4a5158", line="#d9dde1", teacher="#68727b", colours=COLOURS, shades=(0.0, 0.58))
DARK = Ink(text="#b3bac2", line="#353b42", teacher="#939da6", colours=COLOURS_DARK, shades=(0.36, 1.0))


def shades_of(ink: Ink, count: int) -> list[str]:
    """Return the colours of tenths of the noise level, or of another number of parts, from clean to noise."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return [to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(*ink.shades, count))]


def bins_of(history: History) -> tuple[Array, Array]:
    """Return steps `[N]` and the mean output loss per tenth of the noise level, `[N, bins]`; missing losses are NaN."""
    losses = [[_positive(loss) for loss in record.bins] for record in history]
    return _steps(history), np.array(losses).reshape(len(history), -1 if history else 0)


def total_of(history: History) -> tuple[Array, Array]:
    """Return steps `[N]` and total loss `[N]`; missing losses are NaN."""
    return _steps(history), np.array([_positive(record.loss) for record in history])


def _steps(history: History) -> Array:
    return np.array([float(record.step) for record in history])


def describe_loss(steps: Array, losses: Array) -> str:
    """Return what a curve shows, for readers who do not see it: `0.52 at step 50, 0.031 at step 500`.

    Args:
        losses: one per step; NaN where it is missing.
    """
    known = np.flatnonzero(np.isfinite(losses))
    if not known.size:
        return "no loss"
    places = dict.fromkeys((int(known[0]), int(known[-1])))
    return ", ".join(f"{significant(float(losses[i]))} at step {int(steps[i]):,}" for i in places)


def limits_of(histories: Sequence[History]) -> tuple[float, float] | None:
    """Return the lowest and highest loss that `loss_by_noise` plots for several histories, for a common axis."""
    plotted = [_thin(*bins_of(history))[1].ravel() for history in histories]
    losses = np.concatenate([*plotted, np.empty(0)])
    losses = losses[np.isfinite(losses)]
    return (float(losses.min()), float(losses.max())) if losses.size else None


def loss_by_noise(history: History, *, limits: tuple[float, float] | None = None, ink: Ink = LIGHT) -> bytes | None:
    """Plot one line per tenth of the noise level, coloured from clean to noise; None without a loss to plot."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    steps, losses = _thin(*bins_of(history))
    if not np.isfinite(losses).any():
        return None
    count = losses.shape[1]
    shades = shades_of(ink, count)
    figure, axes = loss_axes(ink)
    for column in range(count):
        _line(axes, steps, losses[:, column], color=shades[column], linewidth=1.4)
    _set_limits(axes, steps, limits)
    scale = ScalarMappable(BoundaryNorm(np.linspace(0, 1, count + 1), count), ListedColormap(shades))
    bar = figure.colorbar(scale, ax=axes, ticks=[0, 0.5, 1], pad=0.02, aspect=28)
    bar.ax.set_yticklabels(["clean", "0.5", "noise"])
    bar.ax.tick_params(which="both", length=0, colors=ink.text)
    bar.outline.set_visible(False)
    _label(axes, "output loss")
    return svg_bytes(figure)


def total_loss(
    histories: Mapping[str, History], *, colours: Mapping[str, int] | None = None, ink: Ink = LIGHT
) -> bytes | None:
    """Plot the total loss of every student; None without a loss to plot.

    Args:
        colours: for each name, its index in the palette.
    """
    figure, axes = loss_axes(ink)
    lines, last = 0, np.zeros(1)
    for position, (name, history) in enumerate(histories.items()):
        steps, losses = _thin(*total_of(history))
        if not np.isfinite(losses).any():
            continue
        index = (colours or {}).get(name, position)
        style = {"color": ink.colours[index % len(ink.colours)], "linestyle": _DASHES[index % len(_DASHES)]}
        # An unescaped dollar sign would start math text.
        _line(axes, steps, losses, label=name.replace("$", r"\$"), linewidth=1.8, **style)
        lines, last = lines + 1, np.append(last, steps)
    if not lines:
        return None
    _set_limits(axes, last)
    _label(axes, "total loss")
    axes.legend(frameon=False, labelcolor=ink.text, handlelength=2.6, loc="upper right")
    return svg_bytes(figure)


def dots(
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    ink: Ink = LIGHT,
) -> bytes:
    """Plot the mean of every row's values per series, with error bars of one standard deviation, on an opaque page.

    Args:
        rows: by label and name of the series, the values over seeds.
        intervals: by label and name of the series, the ends of the error bar of a single value.
    """
    rows = {label: row for label, row in rows.items() if any(row.values())}
    figure, axes = loss_axes(ink)
    figure.set_size_inches(7, 1.3 + 0.45 * len(rows))
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for number, name in enumerate(names):
        points = [(line, np.array(row[name])) for line, row in enumerate(rows.values()) if row.get(name)]
        ends = [(intervals or {}).get(label, {}).get(name) for label, row in rows.items() if row.get(name)]
        errors = [_error_bar(values, of_one) for (_, values), of_one in zip(points, ends, strict=True)]
        axes.errorbar(
            [values.mean() for _, values in points],
            [line + 0.18 * (number - (len(names) - 1) / 2) for line, _ in points],
            xerr=np.array(errors).T,
            fmt="o",
            color=ink.colours[number % len(ink.colours)],
            label=name,
        )
    axes.set_yscale("linear")
    axes.set_xlim(*roomy(*axes.get_xlim()))
    axes.set_yticks(range(len(rows)), [label.replace("$", r"\$") for label in rows])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("")
    axes.grid(axis="both", color=ink.line, linewidth=0.7)
    if names:
        figure.legend(frameon=False, labelcolor=ink.text, loc="outside lower center", ncols=len(names))
    return svg_bytes(figure, transparent=False)


def _error_bar(values: Array, interval: tuple[float, float] | None) -> tuple[float, float]:
    """Return the lengths of an error bar to the left and right: a standard deviation, or of one value its interval."""
    if len(values) > 1:
        return float(values.std(ddof=1)), float(values.std(ddof=1))
    return (0.0, 0.0) if interval is None else (max(values[0] - interval[0], 0.0), max(interval[1] - values[0], 0.0))


def _positive(loss: float | None) -> float:
    """Return a loss that a logarithmic axis can show, or NaN."""
    return loss if loss is not None and 0 < loss < math.inf else math.nan


def _thin(steps: Array, losses: Array) -> tuple[Array, Array]:
    """Return means over equal windows if there are more points than a small figure can show."""
    if len(steps) <= _POINTS:
        return steps, losses
    edges = np.linspace(0, len(steps), _POINTS + 1).astype(int)
    windows = [losses[a:b] for a, b in itertools.pairwise(edges)]
    counts = np.array([np.isfinite(window).sum(0) for window in windows])
    sums = np.array([np.nansum(window, axis=0) for window in windows])
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return np.array([steps[a:b].mean() for a, b in itertools.pairwise(edges)]), means


def _line(axes: Any, steps: Array, losses: Array, **style: Any) -> None:
    """Plot the finite points; a single point gets a marker, since a line would not show it."""
    finite_losses = np.isfinite(losses)
    if not finite_losses.any():
        return
    marker = "o" if finite_losses.sum() == 1 else ""
    axes.plot(steps[finite_losses], losses[finite_losses], marker=marker, markersize=4, **style)


def roomy(low: float, high: float, *, least: float = 0.2) -> tuple[float, float]:
    """Return limits of a linear axis that span at least a share of the larger one, with the same middle.

    A single point would otherwise get an axis that shows its last digits only.
    """
    middle, half = (low + high) / 2, least * max(abs(low), abs(high)) / 2
    if high - low >= 2 * half:
        return low, high
    return middle - half, middle + half


def _set_limits(axes: Any, steps: Array, losses: tuple[float, float] | None = None) -> None:
    """Let the steps begin at 0, and let the logarithmic axis of losses span at least a factor of 4."""
    from matplotlib.ticker import MaxNLocator

    low, high = (losses[0] / 1.3, losses[1] * 1.3) if losses else axes.get_ylim()
    if high < 4 * low:
        middle = math.sqrt(low * high)
        low, high = middle / 2, 2 * middle
    axes.set_ylim(low, high)
    axes.set_xlim(0, 1.03 * max(float(steps.max(initial=0.0)), 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{round(value):,}")


def _label(axes: Any, text: str) -> None:
    """Label the loss axis with plain numbers: decades, and also 2 and 5 where the axis spans few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(text)


def loss_axes(ink: Ink) -> tuple[Any, Any]:
    """Return an empty figure and its axes, for losses over training steps."""
    figure, axes = new_axes(ink, _SIZE_INCHES)
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    return figure, axes


def new_axes(
    ink: Ink, size: tuple[float, float], margins: tuple[float, float, float, float] | None = None
) -> tuple[Any, Any]:
    """Return an empty figure of this width and height in inches, and its axes, in the colours of a page.

    Args:
        margins: left, bottom, right and top ends of the axes as shares of the figure; None: as the labels need it,
            which takes twice as long.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=None if margins else "constrained")
    if margins:
        left, bottom, right, top = margins
        figure.subplots_adjust(left=left, bottom=bottom, right=right, top=top)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(ink.line)
    axes.grid(axis="y", color=ink.line, linewidth=0.7)
    axes.tick_params(which="both", length=0, colors=ink.text)
    axes.xaxis.label.set_color(ink.text)
    axes.yaxis.label.set_color(ink.text)
    axes.set_axisbelow(True)
    return figure, axes


def svg_bytes(figure: Any, *, transparent: bool = True) -> bytes:
    """Return a figure as an SVG file whose letters are outlines."""
    import matplotlib as mpl

    settings = {"svg.hashsalt": "condistill", "svg.fonttype": "path"}
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = io.BytesIO()
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=transparent, metadata=metadata)
    return buffer.getvalue()
