"""95 % intervals contain the true value in about 95 % of simulated evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from samples import reference_set

from condistill.evaluate.metrics import METRICS
from condistill.evaluate.metrics.intervals import mean_interval, share_interval, t_quantile
from condistill.evaluate.metrics.metric import Context, Samples
from condistill.evaluate.metrics.paired import compare

pytestmark = pytest.mark.slow
Values = NDArray[np.float64]
TRIALS = 250
"""The standard deviation of a share of 95 % of so many trials is 1.4 %."""


def coverage(trial: Callable[[np.random.Generator, int], tuple[float, float] | None], truth: float) -> float:
    rng = np.random.Generator(np.random.Philox(11))
    inside = 0
    for number in range(TRIALS):
        interval = trial(rng, number)
        assert interval is not None
        inside += interval[0] <= truth <= interval[1]
    return inside / TRIALS


def of_mean(values: Values, seed: int, *, images_per_prompt: int = 1) -> tuple[float, float] | None:
    clusters = np.arange(len(values)) // images_per_prompt
    return mean_interval(values, np.full(len(values), 1 / len(values)), clusters, seed=seed)


@pytest.mark.parametrize("prompts", [5, 30, 200])
def test_the_interval_of_a_mean_covers(prompts: int) -> None:
    found = coverage(lambda rng, seed: of_mean(rng.normal(size=prompts), seed), 0.0)
    assert 0.92 <= found <= 0.98


@pytest.mark.parametrize("prompts", [30, 200])
def test_the_interval_of_a_mean_of_skewed_values_covers_nearly_as_often(prompts: int) -> None:
    found = coverage(lambda rng, seed: of_mean(rng.lognormal(0, 0.5, prompts), seed), float(np.exp(0.125)))
    assert 0.91 <= found <= 0.98


@pytest.mark.parametrize("prompts", [30, 200])
def test_the_interval_covers_where_prompts_have_several_images(prompts: int) -> None:
    def trial(rng: np.random.Generator, seed: int) -> tuple[float, float] | None:
        values = np.repeat(rng.normal(size=prompts), 3) + 0.5 * rng.normal(size=3 * prompts)
        return of_mean(values, seed, images_per_prompt=3)

    assert 0.92 <= coverage(trial, 0.0) <= 0.98


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("prompts", [30, 200])
def test_the_interval_of_a_share_covers_near_all_images_too(prompts: int, share: float) -> None:
    def trial(rng: np.random.Generator, seed: int) -> tuple[float, float] | None:
        flags = (rng.random(prompts) < share).astype(float)
        return share_interval(flags, np.full(prompts, 1 / prompts), np.arange(prompts))

    assert 0.92 <= coverage(trial, share) <= 0.995


@pytest.mark.parametrize("prompts", [30, 200])
def test_the_interval_of_a_paired_difference_covers_and_is_much_narrower(prompts: int) -> None:
    def trial(rng: np.random.Generator, seed: int) -> tuple[float, float]:
        of_prompt = rng.normal(size=prompts)
        one, other = (of_prompt + 0.3 * rng.normal(size=prompts) + shift for shift in (0.1, 0.0))
        found = compare(*({(0, n): float(v) for n, v in enumerate(each)} for each in (one, other)), seed)
        assert found is not None
        assert found.high - found.low < 0.7 * 2 * t_quantile(prompts - 1) * np.sqrt(2 * 1.09 / prompts)
        return found.low, found.high

    assert 0.92 <= coverage(trial, 0.1) <= 0.98


@pytest.mark.parametrize("images", [30, 200])
@pytest.mark.parametrize("name", ["kid", "cmmd"])
def test_the_interval_of_a_kernel_distance_to_the_teachers_images_covers(name: str, images: int) -> None:
    """Student and teacher have images of the same prompts, which are alike; the true value is that of a population."""
    kind, size, population = METRICS[name], 16, 1000
    rng = np.random.Generator(np.random.Philox(4))
    of_prompt = np.maximum(rng.normal(size=(population, size)), 0)
    of_student = of_prompt + 0.3 * rng.normal(size=(population, size)) + 0.3 * rng.normal(size=size)
    between = [(of_student, of_student), (of_prompt, of_prompt), (of_student, of_prompt)]
    means = [kind.kernel(*pair).mean() for pair in between]  # type: ignore[attr-defined]
    truth = kind.scale * (means[0] + means[1] - 2 * means[2])  # type: ignore[attr-defined]

    def trial(rng: np.random.Generator, seed: int) -> tuple[float, float]:
        chosen = rng.choice(population, images)
        prompts = [f"{number} {row}" for number, row in enumerate(chosen)]
        reference = replace(reference_set(of_prompt[chosen]), prompts=prompts)
        metric = kind(Context({kind.needs[0]: reference}, seed))
        metric.update(Samples(0, prompts, {kind.needs[0]: of_student[chosen]}, range(images)))
        score = metric.compute()
        assert score is not None
        assert score.low is not None
        assert score.high is not None
        return score.low, score.high

    assert 0.92 <= coverage(trial, truth) <= 0.99


@pytest.mark.parametrize("images", [30, 200])
@pytest.mark.parametrize(("shift", "highest"), [(0.0, 1.0), (0.3, 1.0), (1.0, 0.99)])
@pytest.mark.parametrize("name", ["kid", "cmmd"])
def test_the_interval_of_a_kernel_distance_covers(name: str, shift: float, highest: float, images: int) -> None:
    """The true value is that of a finite population; near 0 the interval is too wide, and never too narrow."""
    kind, size, population = METRICS[name], 16, 1000
    rng = np.random.Generator(np.random.Philox(3))
    mix = rng.normal(size=(size, size)) / 4
    direction = shift * rng.normal(size=size)
    of_student, of_reference = (np.maximum(rng.normal(size=(population, size)) @ mix + d, 0) for d in (direction, 0))
    if not shift:
        of_reference = of_student
    if name == "cmmd":
        of_student, of_reference = (each / np.linalg.norm(each, axis=1)[:, None] for each in (of_student, of_reference))
    between = [(of_student, of_student), (of_reference, of_reference), (of_student, of_reference)]
    means = [kind.kernel(*pair).mean() for pair in between]  # type: ignore[attr-defined]
    truth = kind.scale * (means[0] + means[1] - 2 * means[2])  # type: ignore[attr-defined]

    def trial(rng: np.random.Generator, seed: int) -> tuple[float, float]:
        rows, others = rng.integers(0, population, (2, images))
        metric = kind(Context({kind.needs[0]: reference_set(of_reference[others])}, seed))
        prompts = [str(number) for number in range(images)]
        metric.update(Samples(0, prompts, {kind.needs[0]: of_student[rows]}, range(images)))
        score = metric.compute()
        assert score is not None
        assert score.low is not None
        assert score.high is not None
        return score.low, score.high

    assert 0.93 <= coverage(trial, truth) <= highest
