from __future__ import annotations

import math
import sys
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


def test_dollar_signs_in_names_are_not_read_as_math() -> None:
    assert plots.total_loss({"a$x^{$": build_history(2)}) is not None
