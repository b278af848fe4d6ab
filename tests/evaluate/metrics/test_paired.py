from __future__ import annotations

import numpy as np
import pytest

from condistill.evaluate.metrics.metric import ImageKey
from condistill.evaluate.metrics.paired import compare

Values = dict[ImageKey, float]


def values(rng: np.random.Generator, images: int = 40, seeds: int = 2) -> Values:
    """Return random values of some images per evaluation seed."""
    return {(seed, number): float(rng.normal()) for seed in range(seeds) for number in range(images)}


def near(one: Values, rng: np.random.Generator, shift: float = 0.0, noise: float = 0.1) -> Values:
    return {key: value - shift + noise * float(rng.normal()) for key, value in one.items()}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(7))


def test_a_shift_much_smaller_than_the_spread_of_prompts_is_separated(rng: np.random.Generator) -> None:
    one = values(rng)
    found = compare(one, near(one, rng, shift=0.1), 0)
    assert found is not None
    assert 0 < found.low < found.difference < found.high < 0.2
    assert found.images == 80


def test_exchanged_models_have_the_negative_difference(rng: np.random.Generator) -> None:
    one, other = values(rng), values(rng)
    forth, back = compare(one, other, 3), compare(other, one, 3)
    assert forth is not None
    assert back is not None
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))


def test_it_depends_on_the_values_and_the_seed_alone(rng: np.random.Generator) -> None:
    one, other = values(rng), values(rng)
    turned = dict(reversed(list(one.items())))
    assert compare(one, other, 0) == compare(turned, other, 0)
    assert compare(one, other, 0) != compare(one, other, 1)


def test_only_images_that_both_models_have_count(rng: np.random.Generator) -> None:
    one = values(rng, seeds=1)
    found = compare(one, {key: one[key] - 1 for key in list(one)[:7]} | {(9, 9): 50.0}, 0)
    assert found is not None
    assert found.images == 7
    assert (found.difference, found.low, found.high) == pytest.approx((1, 1, 1))


def test_every_evaluation_seed_counts_alike() -> None:
    one = {(0, n): 1.0 for n in range(30)} | {(1, n): 3.0 for n in range(10)}
    found = compare(one, dict.fromkeys(one, 0.0), 0)
    assert found is not None
    assert found.difference == pytest.approx(2)


def test_images_of_one_prompt_are_resampled_together(rng: np.random.Generator) -> None:
    prompts = {(seed, number): f"prompt {number}" for seed in range(8) for number in range(20)}
    of_prompt = rng.normal(size=20)
    one = {(seed, number): float(of_prompt[number]) for seed, number in prompts}
    other = dict.fromkeys(one, 0.0)
    apart, together = compare(one, other, 0), compare(one, other, 0, prompts=prompts)
    assert apart is not None
    assert together is not None
    assert apart.difference == pytest.approx(together.difference)
    assert together.high - together.low > 2 * (apart.high - apart.low)  # the 8 images of a prompt are one observation


def test_one_prompt_says_nothing_about_others() -> None:
    assert compare({(0, 0): 1.0}, {(0, 0): 0.0}, 0) is None
    assert compare({}, {}, 0) is None
    two = {(0, 0): 1.0, (1, 0): 2.0}
    assert compare(two, dict.fromkeys(two, 0.0), 0, prompts=dict.fromkeys(two, "a cat")) is None


def test_two_prompts_do_not_separate_models_that_differ_alike() -> None:
    found = compare({(0, 0): 1.0, (0, 1): 2.0}, {(0, 0): 0.0, (0, 1): 0.0}, 0)
    assert found is not None
    assert found.low < 0 < found.high
