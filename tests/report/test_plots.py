from __future__ import annotations

import math
import sys
from importlib import resources
from xml.etree import ElementTree

import numpy as np
import pytest
from histories import build_history, build_record

from condistill.distill.history import HistoryRecord
from condistill.report import plots


@pytest.mark.slow
@pytest.mark.parametrize("ink", [plots.LIGHT, plots.DARK])
def test_plots_are_svg_and_reproducible(ink: plots.Ink) -> None:
    history = build_history(20)
    for plot in (lambda: plots.loss_by_noise(history, ink=ink), lambda: plots.total_loss({"a": history}, ink=ink)):
        first = plot()
        assert first == plot()
        assert first is not None
        assert ElementTree.fromstring(first).tag.endswith("svg")


def test_pyplot_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    assert plots.total_loss({"a": build_history(3)}) is not None


def test_losses_that_are_missing_nan_or_zero_leave_gaps() -> None:
    history = [
        build_record(1, loss=math.nan, bins=(None, 0.2)),
        build_record(2, loss=0.0, bins=(math.inf, math.nan)),
        build_record(3, loss=0.5, bins=(None, 0.0)),
    ]
    steps, bins = plots.bins_of(history)
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(bins, [[np.nan, 0.2], [np.nan] * 2, [np.nan] * 2])
    np.testing.assert_array_equal(plots.total_of(history)[1], [np.nan, np.nan, 0.5])
    assert plots.loss_by_noise(history) is not None
    assert plots.total_loss({"a": history}) is not None


@pytest.mark.parametrize("history", [[], [build_record(1, loss=math.nan, bins=(None, None))]])
def test_a_history_without_losses_has_no_plot(history: list[HistoryRecord]) -> None:
    assert plots.loss_by_noise(history) is None
    assert plots.total_loss({"a": history}) is None
    assert plots.total_loss({}) is None
    assert plots.limits_of([history]) is None
    assert plots.limits_of([]) is None


def test_a_long_history_is_averaged_to_its_end() -> None:
    steps, losses = plots._thin(np.arange(1000.0), np.arange(1000.0))
    assert len(steps) == len(losses) < 200
    assert losses[0] < 10
    assert losses[-1] > 990
    np.testing.assert_allclose(losses, steps)


def test_limits_span_everybuild_history() -> None:
    assert plots.limits_of([build_history(2), build_history(2, bins=(7.0,))]) == pytest.approx((0.1, 7.0))


@pytest.mark.parametrize(("low", "high"), [(2.0, 2.0), (1.95, 2.05), (0.0, 0.0), (-0.3, -0.3), (0.0, 5.0), (-1.0, 1.0)])
def test_an_axis_of_a_single_point_is_not_magnified(low: float, high: float) -> None:
    first, last = plots.roomy(low, high)
    assert first <= low <= high <= last
    assert last - first >= 0.19 * max(abs(low), abs(high))
    assert (first + last) == pytest.approx(low + high)


def test_a_training_of_one_record_has_an_axis_from_0_and_a_scale_of_a_factor_of_4() -> None:
    _, axes = plots.loss_axes(plots.LIGHT)
    axes.plot([2], [0.5])
    plots._set_limits(axes, np.array([2.0]))
    assert axes.get_xlim() == pytest.approx((0, 2.06))
    low, high = axes.get_ylim()
    assert high >= 3.99 * low
    labels = [axes.xaxis.get_major_formatter()(value, None) for value in axes.get_xticks()]
    assert all(label.isdigit() for label in labels)  # not 1.900 and 2.100


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("ink", "backgrounds"),
    [(plots.LIGHT, ("#fbfbfa", "#ffffff", "#edeff0")), (plots.DARK, ("#121417", "#1a1d21", "#262a2f"))],
)
def test_bars_lines_and_points_have_a_contrast_of_3_to_1_on_page_card_and_track(
    ink: plots.Ink, backgrounds: tuple[str, ...]
) -> None:
    style = (resources.files("condistill.report") / "style.css.j2").read_text(encoding="utf-8")
    assert all(colour in style or colour == "#ffffff" for colour in backgrounds)
    for background in backgrounds:
        for colour in (ink.teacher, *ink.colours):
            assert _contrast(colour, background) >= 3, (colour, background)
    for shade in plots.shades_of(ink, 10):
        assert _contrast(shade, backgrounds[0]) >= 3, shade


def test_dollar_signs_in_names_are_not_read_as_math() -> None:
    assert plots.total_loss({"a$x^{$": build_history(2)}) is not None


@pytest.mark.slow
def test_the_error_bar_of_one_value_is_its_interval_and_else_a_standard_deviation() -> None:
    assert plots._error_bar(np.array([2.0]), (1.5, 3.0)) == (0.5, 1.0)
    assert plots._error_bar(np.array([2.0]), None) == (0.0, 0.0)
    assert plots._error_bar(np.array([1.0, 3.0]), (0.0, 9.0)) == pytest.approx((2**0.5, 2**0.5))
    rows = {"a": {"x": [2.0]}, "b": {"x": [1.0, 3.0]}}
    assert plots.dots(rows, intervals={"a": {"x": (1.5, 3.0)}}) != plots.dots(rows)
