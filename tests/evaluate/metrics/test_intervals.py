"""Formulas of intervals equal those of scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from condistill.evaluate.metrics.intervals import (
    mean_interval,
    normal_interval,
    seed_weights,
    share_interval,
    standard_error,
    t_quantile,
)


@pytest.mark.parametrize("degrees", [1, 2, 4, 5, 6, 10, 29, 199, 10_000])
def test_the_point_of_students_t_is_that_of_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-3)


@pytest.mark.parametrize(("count", "correct"), [(30, 0), (30, 7), (200, 199), (200, 200)])
def test_the_interval_of_a_share_is_that_of_scipy(count: int, correct: int) -> None:
    flags = (np.arange(count) < correct).astype(float)
    expected = stats.binomtest(correct, count).proportion_ci(method="wilson")
    found = share_interval(flags, np.full(count, 1 / count), np.arange(count))
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("count", [12, 100])
def test_the_interval_of_a_mean_is_the_percentile_bootstrap_of_scipy_made_wider(count: int) -> None:
    values = np.random.Generator(np.random.Philox(count)).lognormal(0, 0.5, count)
    plain = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    wider = t_quantile(count - 1) / 1.96 * np.sqrt(count / (count - 1))
    found = mean_interval(values, np.full(count, 1 / count), np.arange(count), seed=0)
    assert found is not None
    expected = [values.mean() + wider * (end - values.mean()) for end in plain]
    assert found == pytest.approx(expected, abs=0.06 * (plain.high - plain.low))


def test_images_of_a_seed_count_alike_and_so_do_seeds() -> None:
    assert seed_weights(np.array([3, 5, 3, 3])) == pytest.approx([1 / 6, 1 / 2, 1 / 6, 1 / 6])


def test_a_standard_error_comes_back_from_its_interval() -> None:
    assert standard_error(normal_interval(4.0, 0.25, 10_000)) == pytest.approx(0.5, rel=1e-3)
