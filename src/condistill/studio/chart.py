"""The curves of losses, as an SVG inside of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from condistill.studio.markup import text
from condistill.utils.format import significant

Curve = Sequence[tuple[int, float]]
"""Steps and losses."""
_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 40
_MOST_POINTS = 300
_LOG_FROM = 8.0
"""The ratio of the largest loss to the smallest from which the axis is logarithmic."""


def loss_chart(curves: Mapping[str, Curve], *, steps: int = 0) -> str:
    """Return one line per student, with a legend and with the last losses as text; empty without any point.

    Args:
        steps: of the whole training, so that the chart shows what is left.
    """
    finite = {name: [point for point in curve if math.isfinite(point[1])] for name, curve in curves.items()}
    finite = {name: thinned(curve) for name, curve in finite.items() if curve}
    if not finite:
        return ""
    losses = [loss for curve in finite.values() for _, loss in curve]
    low, high = min(losses), max(losses)
    is_log = low > 0 and high / low >= _LOG_FROM
    last_step = max(steps, *(curve[-1][0] for curve in finite.values()))
    bottom, top = _limits(low, high, is_log=is_log)

    def place(step: int, loss: float) -> tuple[float, float]:
        share = (_scaled(loss, is_log=is_log) - bottom) / (top - bottom)
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(last_step, 1)
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)

    ticks = [bottom + (top - bottom) * number / 4 for number in range(5)]
    values = [10**tick if is_log else tick for tick in ticks]
    grid = "".join(_tick(place(0, value)[1], value) for value in values)
    ends = "".join(
        f'<text x="{place(step, values[0])[0]:.1f}" y="{_HEIGHT - 20}" text-anchor="{anchor}">{step:,}</text>'
        for step, anchor in ((0, "start"), (last_step, "end"))
    )
    lines = "".join(
        f'<polyline class="line line-{number % 6}" points="'
        + " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        + '"/>'
        for number, curve in enumerate(finite.values())
    )
    legend = "".join(
        f"<li>{_sample_line(number)} {text(name)}: {significant(curve[-1][1])} at step {curve[-1][0]:,}</li>"
        for number, (name, curve) in enumerate(finite.items())
    )
    summary = "; ".join(
        f"{name} from {significant(curve[0][1])} at step {curve[0][0]:,} to {significant(curve[-1][1])} at step "
        f"{curve[-1][0]:,}"
        for name, curve in finite.items()
    )
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Loss by optimiser step: {text(summary)}">{grid}{ends}'
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">optimiser steps</text>{lines}</svg>'
        f"<figcaption>Loss{', logarithmic axis' if is_log else ''}<ul>{legend}</ul></figcaption></figure>"
    )


def _sample_line(number: int) -> str:
    return (
        f'<svg width="28" height="10" aria-hidden="true"><line class="line line-{number % 6}" x1="0" x2="28" y1="5" '
        'y2="5"/></svg>'
    )


def thinned(curve: Curve) -> list[tuple[int, float]]:
    """Return at most `_MOST_POINTS` points, each the mean of its neighbours; the last one is kept."""
    size = math.ceil(len(curve) / (_MOST_POINTS - 1))
    if size <= 1:
        return list(curve)
    groups = [curve[start : start + size] for start in range(0, len(curve) - 1, size)]
    return [*((group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups), curve[-1]]


def _scaled(loss: float, *, is_log: bool) -> float:
    return math.log10(loss) if is_log else loss


def _limits(low: float, high: float, *, is_log: bool) -> tuple[float, float]:
    """Return the ends of the axis, of which the lower one is 0 where it is not logarithmic."""
    if is_log:
        return math.log10(low), math.log10(high)
    bottom = min(low, 0.0)
    return bottom, high if high > bottom else bottom + 1


def _tick(y: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{significant(value, 2)}</text>'
    )
