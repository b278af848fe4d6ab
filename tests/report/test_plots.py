from __future__ import annotations

import math
import sys
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from condistill.report import plots


def _history(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {"step": i + 1, "loss": 1.0 / (i + 1), "bins": [0.1 * (b + 1) for b in range(10)], **changes}
        for i in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ink", [plots.LIGHT, plots.DARK])
def test_plots_are_svg_and_reproducible(ink: plots.Ink) -> None:
    history = _history(20)
    for draw in (lambda: plots.loss_by_noise(history, ink=ink), lambda: plots.total_loss({"a": history}, ink=ink)):
        first = draw()
        assert first == draw()
        assert first is not None
        assert ElementTree.fromstring(first).tag.endswith("svg")


def test_pyplot_is_never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    assert plots.total_loss({"a": _history(3)}) is not None


def test_null_nan_and_zero_losses_are_gaps() -> None:
    history = [
        {"step": 1, "loss": math.nan, "bins": [None, 0.2]},
        {"step": 2, "loss": 0.0, "bins": [math.inf, math.nan]},
        {"step": 3, "loss": 0.5},
        {"loss": 0.5},
    ]
    steps, bins = plots.bins_of(history)
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(bins, [[np.nan, 0.2], [np.nan] * 2, [np.nan] * 2])
    np.testing.assert_array_equal(plots.total_of(history)[1], [np.nan, np.nan, 0.5])
    assert plots.loss_by_noise(history) is not None
    assert plots.total_loss({"a": history}) is not None


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": None, "bins": [None, None]}], [{"step": 1}]])
def test_without_a_loss_there_is_no_plot(history: list[dict[str, Any]]) -> None:
    assert plots.loss_by_noise(history) is None
    assert plots.total_loss({"a": history}) is None
    assert plots.total_loss({}) is None
    assert plots.limits_of([history]) is None
    assert plots.limits_of([]) is None


def test_a_long_history_is_averaged_not_cut() -> None:
    steps, losses = plots._thin(np.arange(1000.0), np.arange(1000.0))
    assert len(steps) == len(losses) < 200
    assert losses[0] < 10
    assert losses[-1] > 990
    np.testing.assert_allclose(losses, steps)


def test_limits_hold_every_history() -> None:
    assert plots.limits_of([_history(2), _history(2, bins=[7.0])]) == pytest.approx((0.1, 7.0))


def test_names_with_dollar_signs_are_no_mathematics() -> None:
    assert plots.total_loss({"a$x^{$": _history(2)}) is not None
