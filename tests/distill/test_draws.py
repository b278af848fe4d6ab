from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from condistill.distill.draws import Draws, draw
from condistill.utils.randomness import Stream, generator, image_noise, image_seed

SIZES: dict[str, Any] = {"cache_size": 1000, "pool_size": 10**9, "latent_shape": (4, 2, 2)}


def drawn(seed: int, step: int, positions: range | list[int]) -> Draws:
    return draw(seed, step, positions, **SIZES)


def rows(draws: Draws) -> list[tuple[Any, ...]]:
    """Return one comparable row per sample."""
    columns = (draws.uniform, draws.coin, draws.empty_coin, draws.path_coin, draws.noise.flatten(1))
    return list(zip(draws.cached, draws.random, *(column.tolist() for column in columns), strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.permutations(range(8)), st.integers(1, 7))
def test_a_sample_depends_on_its_position_and_not_on_the_batch_it_is_in(
    seed: int, step: int, order: list[int], cut: int
) -> None:
    whole = rows(drawn(seed, step, range(8)))
    pieces = rows(drawn(seed, step, order[:cut])) + rows(drawn(seed, step, order[cut:]))
    assert pieces == [whole[position] for position in order]


def test_the_number_for_a_guidance_scale_is_drawn_last_and_changes_no_other() -> None:
    with_guidance = draw(5, 3, range(8), with_guidance=True, **SIZES)
    assert rows(with_guidance) == rows(drawn(5, 3, range(8)))
    both = [
        draw(5, 3, range(8), with_guidance=with_guidance, further_prompts=2, **SIZES).prompt_choice
        for with_guidance in (False, True)
    ]
    assert both[0] is not None
    assert both[1] is not None
    assert (both[0].prompts == both[1].prompts).all()
    assert drawn(5, 3, range(8)).guidance is None
    assert with_guidance.guidance is not None
    alone = [draw(5, 3, [i], with_guidance=True, **SIZES).guidance for i in range(8)]
    assert torch.equal(torch.cat(alone), with_guidance.guidance)
    others = (with_guidance.uniform, with_guidance.coin, with_guidance.empty_coin, with_guidance.path_coin)
    assert not any((with_guidance.guidance == other).any() for other in others)


def test_the_number_for_a_guidance_scale_is_uniform() -> None:
    values = draw(5, 0, range(2000), with_guidance=True, **SIZES).guidance
    assert values is not None
    assert ((values >= 0) & (values < 1)).all()
    assert stats.kstest(values.numpy(), "uniform").pvalue > 0.01


def test_drawing_leaves_other_generators_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawn(0, 0, range(4))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_steps_and_positions_all_give_other_samples() -> None:
    samples = [
        rows(drawn(seed, step, [position]))[0] for seed in (0, 1, 2) for step in (0, 1, 2) for position in (0, 1, 2)
    ]
    noises = {tuple(sample[-1]) for sample in samples}
    assert len(noises) == 27
    assert len({sample[2] for sample in samples}) == 27


@pytest.fixture(scope="module")
def many() -> Draws:
    """250 samples of each of 16 steps."""
    parts = [drawn(5, step, range(250)) for step in range(16)]
    return Draws(
        cached=[i for part in parts for i in part.cached],
        random=[i for part in parts for i in part.random],
        **{
            name: torch.cat([getattr(p, name) for p in parts])
            for name in ("uniform", "coin", "empty_coin", "path_coin", "noise")
        },
    )


@pytest.mark.parametrize("name", ["uniform", "coin", "empty_coin", "path_coin"])
def test_coins_and_times_are_uniform(many: Draws, name: str) -> None:
    values = getattr(many, name)
    assert values.dtype == torch.float64
    assert ((values >= 0) & (values < 1)).all()
    assert stats.kstest(values.numpy(), "uniform").pvalue > 0.01


def test_noise_is_standard_normal(many: Draws) -> None:
    assert many.noise.dtype == torch.float32
    assert many.noise.shape == (4000, 4, 2, 2)
    assert stats.kstest(many.noise.flatten().double().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize(("name", "size"), [("cached", 1000), ("random", 10**9)])
def test_indices_are_uniform_over_the_whole_cache_and_pool(many: Draws, name: str, size: int) -> None:
    values = np.array(getattr(many, name))
    assert values.min() >= 0
    assert values.max() < size
    assert stats.kstest((values + 0.5) / size, "uniform").pvalue > 0.01


def test_the_draws_of_a_sample_are_independent(many: Draws) -> None:
    columns = [
        many.cached,
        many.random,
        many.uniform,
        many.coin,
        many.empty_coin,
        many.path_coin,
        many.noise[:, 0, 0, 0],
    ]
    correlation = np.corrcoef(np.array([np.asarray(column, dtype=float) for column in columns]))
    assert np.abs(correlation - np.eye(len(columns))).max() < 4.5 / np.sqrt(4000)


def test_neighbouring_steps_and_positions_are_independent(many: Draws) -> None:
    noise = many.noise.flatten(1).double().reshape(16, 250, 16)
    for one, next_one in ((noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:])):
        pairs = one.flatten().numpy(), next_one.flatten().numpy()
        assert abs(np.corrcoef(*pairs)[0, 1]) < 4.5 / np.sqrt(pairs[0].size)


def test_streams_are_independent() -> None:
    draws = {stream: tuple(generator(1, stream, 0, 0).random(4)) for stream in Stream}
    assert len(set(draws.values())) == len(Stream)


def test_an_images_noise_and_seed_depend_on_its_index_alone() -> None:
    first = image_noise(3, Stream.CACHE_NOISE, 7, (4, 8, 8))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, image_noise(3, Stream.CACHE_NOISE, 7, (4, 8, 8)))
    assert not np.array_equal(first, image_noise(3, Stream.CACHE_NOISE, 8, (4, 8, 8)))
    assert not np.array_equal(first, image_noise(3, Stream.EVALUATION_NOISE, 7, (4, 8, 8)))
    seeds = [image_seed(3, Stream.CACHE_NOISE, i) for i in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_more_than_three_counters_are_an_error() -> None:
    with pytest.raises(ValueError, match="at most 3 counters, given 4"):
        generator(0, Stream.TRAINING, 1, 2, 3, 4)


# further prompts


def further(count: int, positions: list[int] | range = range(2000)) -> Draws:
    return draw(5, 3, positions, further_prompts=count, **SIZES)


def test_further_prompts_change_no_other_number() -> None:
    assert further(0, range(8)).prompt_choice is None
    assert rows(further(0, range(8))) == rows(further(4, range(8)))


def test_more_further_prompts_change_neither_the_first_ones_nor_the_coins() -> None:
    few, many = further(2, range(8)).prompt_choice, further(6, range(8)).prompt_choice
    assert few is not None
    assert many is not None
    np.testing.assert_array_equal(few.prompts, many.prompts[:, :2])
    for name in ("pick", "blend_coin", "blend"):
        assert torch.equal(getattr(few, name), getattr(many, name))


def test_further_prompts_depend_on_the_position_alone() -> None:
    whole, part = further(3, range(8)).prompt_choice, further(3, [6, 1]).prompt_choice
    assert whole is not None
    assert part is not None
    np.testing.assert_array_equal(part.prompts, whole.prompts[[6, 1]])
    assert torch.equal(part.pick, whole.pick[[6, 1]])


def test_the_numbers_for_prompt_choice_are_uniform_and_independent() -> None:
    numbers = further(2).prompt_choice
    assert numbers is not None
    columns = [numbers.pick, numbers.blend_coin, numbers.blend, *torch.from_numpy(numbers.prompts).flatten(1).unbind(1)]
    values = np.array([column.numpy() for column in columns])
    assert all(stats.kstest(column, "uniform").pvalue > 0.01 for column in values)
    assert np.abs(np.corrcoef(values) - np.eye(len(values))).max() < 4.5 / np.sqrt(values.shape[1])
