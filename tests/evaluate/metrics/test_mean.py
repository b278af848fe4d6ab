"""Metrics with one value per image: values, intervals over prompts, merging in any order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from condistill.evaluate.metrics.intervals import mean_interval
from condistill.evaluate.metrics.mean import MeanMetric, ShareMetric
from condistill.evaluate.metrics.metric import Context, Samples, Score


class Given(MeanMetric):
    name = "given"
    label = "Given"
    description = "a value that is given"
    direction = "higher"
    needs = ("given",)

    def per_image(self, samples: Samples) -> NDArray[Any]:
        return samples.features["given"]


class GivenShare(ShareMetric):
    name = "given"
    label = "Given"
    description = "a flag that is given"
    needs = ("given",)


def samples(values: Any, *, seed: int = 0, first: int = 0, prompts: list[str] | None = None) -> Samples:
    array = np.asarray(values)
    numbers = range(first, first + len(array))
    return Samples(seed, prompts or [f"prompt {seed} {n}" for n in numbers], {"given": array}, numbers)


def computed(*parts: Samples, kind: type[MeanMetric] = Given, seed: int = 0) -> Score:
    metric = kind(Context(seed=seed))
    for part in parts:
        metric.update(part)
    score = metric.compute()
    assert score is not None
    return score


def width(score: Score) -> float:
    assert score.low is not None
    assert score.high is not None
    return score.high - score.low


def test_pieces_merged_in_any_order_give_the_same_bits() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    parts = [samples(rng.normal(size=5), seed=seed, first=first) for seed in (0, 1) for first in (0, 5)]
    results = set()
    for order in itertools.permutations(parts):
        merged = Given()
        for part in order:
            one = Given()
            one.update(part)
            merged.merge(one)
        results.add((merged.compute(), tuple(merged.values().items())))
    assert results == {(computed(*parts), next(iter(results))[1])}


def test_values_are_those_of_the_images_by_seed_and_number() -> None:
    metric = Given()
    metric.update(samples([1.0, 2.0], seed=3, first=7))
    assert metric.values() == {(3, 7): 1.0, (3, 8): 2.0}
    unnumbered = Given()
    unnumbered.update(Samples(0, ["a"], {"given": np.ones(1)}))
    assert unnumbered.values() == {}


def test_the_interval_of_many_images_is_that_of_the_normal_distribution() -> None:
    rng = np.random.Generator(np.random.Philox(2))
    values = rng.normal(5, 2, 1000)
    score = computed(samples(values))
    half = 1.96 * values.std(ddof=1) / np.sqrt(1000)
    assert (score.low, score.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_another_seed_changes_the_interval_a_little_and_nothing_else() -> None:
    values = np.random.Generator(np.random.Philox(3)).normal(size=50)
    first, second = computed(samples(values)), computed(samples(values), seed=1)
    assert first.value == second.value
    assert first != second
    assert width(first) == pytest.approx(width(second), rel=0.1)


def test_a_scale_scales_the_interval_and_an_offset_moves_it() -> None:
    values = np.random.Generator(np.random.Philox(4)).normal(size=30)
    score, moved = computed(samples(values)), computed(samples(1e6 + 3 * values))
    assert score.low is not None
    assert score.high is not None
    assert (moved.low, moved.high) == pytest.approx((1e6 + 3 * score.low, 1e6 + 3 * score.high), abs=1e-6)


def test_many_images_of_few_prompts_do_not_narrow_the_interval() -> None:
    of_prompt = np.random.Generator(np.random.Philox(5)).normal(size=12)
    prompts = [f"prompt {n}" for n in range(12)]
    one = computed(samples(of_prompt, prompts=prompts))
    five = computed(*(samples(of_prompt, seed=seed, prompts=prompts) for seed in range(5)))
    assert width(five) == pytest.approx(width(one))


def test_one_prompt_has_no_interval() -> None:
    score = computed(samples([1.0, 2.0], prompts=["a", "a"]))
    assert (score.low, score.high) == (None, None)


def test_a_share_of_all_images_is_not_certain() -> None:
    score = computed(samples(np.ones(100, bool)), kind=GivenShare)
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.963, abs=1e-3)  # Wilson, 100 of 100
    nothing = computed(samples(np.zeros(100, bool)), kind=GivenShare)
    assert nothing.low == 0.0
    assert nothing.high == pytest.approx(0.037, abs=1e-3)


def test_equal_images_of_a_prompt_count_as_one_in_a_share() -> None:
    flags = np.arange(40) % 3 == 0
    prompts = [f"prompt {n}" for n in range(40)]
    one = computed(samples(flags, prompts=prompts), kind=GivenShare)
    four = computed(*(samples(flags, seed=seed, prompts=prompts) for seed in range(4)), kind=GivenShare)
    assert width(four) == pytest.approx(width(one), rel=0.05)
    apart = computed(*(samples(flags, seed=seed) for seed in range(4)), kind=GivenShare)
    assert width(apart) == pytest.approx(width(one) / 2, rel=0.05)


def test_thirty_thousand_prompts_have_the_interval_of_the_normal_distribution() -> None:
    values = np.random.Generator(np.random.Philox(6)).normal(size=30_000)
    low, high = mean_interval(values, np.full(30_000, 1 / 30_000), np.arange(30_000), seed=0) or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30_000), rel=0.08)
    assert low < values.mean() < high


def test_every_seed_counts_alike_and_the_spread_is_over_their_means() -> None:
    score = computed(samples(np.ones(30)), samples(3 * np.ones(10), seed=1))
    assert (score.value, score.spread) == (2.0, pytest.approx(np.sqrt(2)))
