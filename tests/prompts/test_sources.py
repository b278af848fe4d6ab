from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from condistill.errors import CondistillError
from condistill.prompts import PromptPool
from condistill.prompts.sources import SourceMix

WEIGHTS = {"a.txt": 1.0, "b.txt": 5.0, "c.txt": 2.0}


@pytest.fixture
def pool(tmp_path: Path) -> PromptPool:
    """A pool of three sources with 20, 3 and 7 prompts of their own."""
    for name, numbers in {"a": range(20), "b": range(18, 23), "c": range(23, 30)}.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"prompt {i}\n" for i in numbers))
    return PromptPool.build([tmp_path / f"{name}.txt" for name in "abc"], tmp_path / "pool.arrow")


def count_draws(pool: PromptPool, weights: dict[str, float] | None, n: int = 40_000) -> np.ndarray:
    """Return how often each prompt of a pool is drawn in `n` draws."""
    mix = SourceMix.of(pool, weights)
    return np.bincount(mix.indices(np.random.Generator(np.random.Philox(3)).random((n, 2))), minlength=len(pool))


def test_sources_are_drawn_by_weight_and_the_prompts_of_a_source_uniformly(pool: PromptPool) -> None:
    counts = count_draws(pool, WEIGHTS)
    expected = np.repeat([1 / 8 / 20, 5 / 8 / 3, 2 / 8 / 7], [20, 3, 7]) * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > 0.01


def test_the_order_of_the_weights_does_not_matter(pool: PromptPool) -> None:
    reordered = dict(reversed(WEIGHTS.items()))
    np.testing.assert_array_equal(count_draws(pool, reordered), count_draws(pool, WEIGHTS))


def test_without_weights_every_prompt_is_equally_likely(pool: PromptPool) -> None:
    assert stats.chisquare(count_draws(pool, None)).pvalue > 0.01


def test_the_smallest_and_largest_random_numbers_choose_a_prompt_of_the_right_source(pool: PromptPool) -> None:
    last = np.nextafter(1.0, 0.0)
    mix = SourceMix.of(pool, WEIGHTS)
    corners = np.array([[0.0, 0.0], [0.0, last], [1 / 8, 0.0], [0.7, last], [last, last]])
    assert mix.indices(corners).tolist() == [0, 19, 20, 22, 29]
    one_source = SourceMix(np.array([0]), np.array([3]), np.array([1.0]))
    assert one_source.indices(np.array([last, last])) == 2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a.txt": 1.0, "b.txt": 1.0, "d.txt": 1.0}, r"'d.txt', which is not a file of the prompt pool; did you mean"),
        ({"b.txt": 1.0}, r"leaves out 'a.txt', 'c.txt'; give every file of the prompt pool a weight"),
    ],
)
def test_weights_must_have_the_names_of_the_files(pool: PromptPool, weights: dict[str, float], message: str) -> None:
    with pytest.raises(CondistillError, match=message):
        SourceMix.of(pool, weights)


def test_a_pool_without_files_has_no_sources(tmp_path: Path) -> None:
    pool = PromptPool.from_prompts(["a"], tmp_path / "pool.arrow")
    with pytest.raises(CondistillError, match=r"'a.txt', which is not a file .*; it was built from no files"):
        SourceMix.of(pool, {"a.txt": 1.0})
