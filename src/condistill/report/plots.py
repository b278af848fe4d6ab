"""Loss curves and score plots as SVG. matplotlib is used without global state; equal input gives equal bytes."""

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

Array = NDArray[np.float64]
History = Sequence[HistoryRecord]
"""The records of a training history, in the order of their steps."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B")
COLOURS_DARK = ("#56B4E9", "#EE8052", "#2BBF94", "#DE9CC0", "#F0BC4A")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
_POINTS = 160
_SIZE_INCHES = (5.0, 3.3)


@dataclass(frozen=True, slots=True)
class Ink:
    """The colours for one page background; `shades` is the part of the colour map that is visible on it."""

    text: str
    line: str
    colours: tuple[str, ...]
    shades: tuple[float, float]


LIGHT = Ink(text="#4a5158", line="#d9dde1", colours=COLOURS, shades=(0.0, 0.88))
DARK = Ink(text="#b3bac2", line="#353b42", colours=COLOURS_DARK, shades=(0.22, 1.0))


def bins_of(history: History) -> tuple[Array, Array]:
    """Return steps `[N]` and the mean output loss per tenth of the noise level, `[N, bins]`; missing losses are NaN."""
    losses = [[_positive(loss) for loss in record.bins] for record in history]
    return _steps(history), np.array(losses).reshape(len(history), -1 if history else 0)


def total_of(history: History) -> tuple[Array, Array]:
    """Return steps `[N]` and total loss `[N]`; missing losses are NaN."""
    return _steps(history), np.array([_positive(record.loss) for record in history])


def _steps(history: History) -> Array:
    return np.array([float(record.step) for record in history])


def limits_of(histories: Sequence[History]) -> tuple[float, float] | None:
    """Return the lowest and highest loss that `loss_by_noise` plots for several histories, for a common axis."""
    plotted = [_thin(*bins_of(history))[1].ravel() for history in histories]
    losses = np.concatenate([*plotted, np.empty(0)])
    losses = losses[np.isfinite(losses)]
    return (float(losses.min()), float(losses.max())) if losses.size else None


def loss_by_noise(history: History, *, limits: tuple[float, float] | None = None, ink: Ink = LIGHT) -> bytes | None:
    """Plot one line per tenth of the noise level, coloured from clean to noise; None without a loss to plot."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    steps, losses = _thin(*bins_of(history))
    if not np.isfinite(losses).any():
        return None
    count = losses.shape[1]
    shades = mpl.colormaps["viridis"](np.linspace(*ink.shades, count))
    figure, axes = _axes(ink)
    for column in range(count):
        _line(axes, steps, losses[:, column], color=shades[column], linewidth=1.4)
    if limits:
        axes.set_ylim(limits[0] / 1.3, limits[1] * 1.3)
    scale = ScalarMappable(BoundaryNorm(np.linspace(0, 1, count + 1), count), ListedColormap(shades))
    bar = figure.colorbar(scale, ax=axes, ticks=[0, 0.5, 1], pad=0.02, aspect=28)
    bar.ax.set_yticklabels(["clean", "0.5", "noise"])
    bar.ax.tick_params(which="both", length=0, colors=ink.text)
    bar.outline.set_visible(False)
    _label(axes, "output loss")
    return _svg(figure)


def total_loss(
    histories: Mapping[str, History], *, colours: Mapping[str, int] | None = None, ink: Ink = LIGHT
) -> bytes | None:
    """Plot the total loss of every student; None without a loss to plot.

    Args:
        colours: for each name, its index in the palette.
    """
    figure, axes = _axes(ink)
    lines = 0
    for position, (name, history) in enumerate(histories.items()):
        steps, losses = _thin(*total_of(history))
        if not np.isfinite(losses).any():
            continue
        index = (colours or {}).get(name, position)
        style = {"color": ink.colours[index % len(ink.colours)], "linestyle": _DASHES[index % len(_DASHES)]}
        # An unescaped dollar sign would start math text.
        _line(axes, steps, losses, label=name.replace("$", r"\$"), linewidth=1.8, **style)
        lines += 1
    if not lines:
        return None
    _label(axes, "total loss")
    axes.legend(frameon=False, labelcolor=ink.text, handlelength=2.6, loc="upper right")
    return _svg(figure)


def dots(rows: Mapping[str, Mapping[str, Sequence[float]]], *, ink: Ink = LIGHT) -> bytes:
    """Plot the mean of every row's values per series, with error bars of one standard deviation, on an opaque page.

    Args:
        rows: by label and name of the series, the values over seeds.
    """
    rows = {label: row for label, row in rows.items() if any(row.values())}
    figure, axes = _axes(ink)
    figure.set_size_inches(7, 1.3 + 0.45 * len(rows))
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for number, name in enumerate(names):
        points = [(line, np.array(row[name])) for line, row in enumerate(rows.values()) if row.get(name)]
        axes.errorbar(
            [values.mean() for _, values in points],
            [line + 0.18 * (number - (len(names) - 1) / 2) for line, _ in points],
            xerr=[values.std(ddof=1) if len(values) > 1 else 0.0 for _, values in points],
            fmt="o",
            color=ink.colours[number % len(ink.colours)],
            label=name,
        )
    axes.set_yscale("linear")
    axes.set_yticks(range(len(rows)), [label.replace("$", r"\$") for label in rows])
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("")
    axes.grid(axis="both", color=ink.line, linewidth=0.7)
    if names:
        figure.legend(frameon=False, labelcolor=ink.text, loc="outside lower center", ncols=len(names))
    return _svg(figure, transparent=False)


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
    marker = "o" if finite_losses.sum() == 1 else ""
    axes.plot(steps[finite_losses], losses[finite_losses], marker=marker, markersize=4, **style)


def _label(axes: Any, text: str) -> None:
    """Label the loss axis with plain numbers: decades, and also 2 and 5 where the axis spans few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(text)


def _axes(ink: Ink) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.set_xlabel("training step")
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


def _svg(figure: Any, *, transparent: bool = True) -> bytes:
    import matplotlib as mpl

    settings = {"svg.hashsalt": "condistill", "svg.fonttype": "path"}
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = io.BytesIO()
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=transparent, metadata=metadata)
    return buffer.getvalue()
