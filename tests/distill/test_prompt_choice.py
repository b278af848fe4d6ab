from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.config.conditioning import PromptChoiceSettings
from condistill.distill import prompt_choice as module
from condistill.distill.batches import Batch, BatchSource
from condistill.distill.prompt_choice import (
    Disagreement,
    PromptChoice,
    RunningMeans,
    k_means,
    mean_distance,
    nearest_distance,
    pick,
    probabilities,
)
from condistill.distill.random_conditioning import effective_noise_level, exponential
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool
from condistill.prompts.sources import check_pool
from condistill.teachers.family import Family

SEED = 5
Make = Callable[..., PromptChoice]


def unit(seed: int, *shape: int) -> Tensor:
    points = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(points, dim=-1)


# distances


@pytest.mark.parametrize("chunk", [1, 7, 50, 64])
def test_the_nearest_distance_is_that_of_brute_force(chunk: int) -> None:
    queries, known = unit(0, 20, 8), unit(1, 50, 8)
    brute = [min(1 - float(q @ k) for k in known.double()) for q in queries.double()]
    given = nearest_distance(queries, known, chunk=chunk)
    torch.testing.assert_close(given.double(), torch.tensor(brute, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_a_known_embedding_is_at_distance_0_despite_rounding() -> None:
    known = unit(1, 50, 300)
    rounded = torch.nn.functional.normalize(known + 1e-5 * unit(2, 50, 300))
    assert not nearest_distance(rounded, known).any()
    assert (nearest_distance(unit(3, 50, 300), known) > 0).all()


def test_the_mean_distance_is_over_all_pairs_of_different_rows() -> None:
    rows = unit(0, 30, 4)
    pairs = [1 - float(a @ b) for i, a in enumerate(rows.double()) for j, b in enumerate(rows.double()) if i != j]
    assert mean_distance(rows).item() == pytest.approx(np.mean(pairs), rel=1e-6)


# the effective noise level


def test_the_effective_noise_level_is_its_closed_form_clamped_to_0_and_1() -> None:
    u, stretch = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0]), torch.tensor([2.0, 0.5, 1.5, 20.0, 9.0])
    assert effective_noise_level(u, stretch).tolist() == pytest.approx([0.0, 0.625, 0.25, 0.0, 1.0])


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.lists(st.floats(0, 2), min_size=2, max_size=6), st.floats(0.01, 4))
def test_p_is_unchanged_at_the_mean_distance_and_falls_with_distance(
    u: float, distances: list[float], power: float
) -> None:
    p, mean = exponential(5.0), 0.8
    level = torch.full((len(distances) + 1,), u, dtype=torch.float64)
    stretch = (torch.tensor([mean, *sorted(distances)], dtype=torch.float64) / mean) ** power
    changed = p(effective_noise_level(level, stretch))
    assert changed[0].item() == pytest.approx(p(level)[0].item(), rel=1e-12)
    assert (changed[1:].diff() <= 0).all()
    for d, now in zip(sorted(distances), changed[1:], strict=True):
        assert (now >= changed[0] - 1e-12) if d <= mean else (now <= changed[0] + 1e-12)


# the choice among candidates


def test_candidates_are_kept_in_proportion_to_their_scores() -> None:
    distance, loss = np.array([0.9, 0.1, 0.5, 0.0, 0.7]), np.array([1.0, 3.0, 0.5, 9.0, 1.5])
    exact = distance**2.0 * loss**0.5
    exact /= exact.sum()
    n = 20_000
    rows = [(torch.tensor(distance).float().expand(n, -1), 2.0), (torch.tensor(loss).expand(n, -1), 0.5)]
    uniform = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    counts = np.bincount(pick(probabilities(*rows), uniform).numpy(), minlength=5)
    assert counts[3] == 0
    seen = exact > 0
    assert stats.chisquare(counts[seen], n * exact[seen]).pvalue > 0.01
    torch.testing.assert_close(probabilities(*rows)[0], torch.tensor(exact), rtol=1e-6, atol=1e-9)


def test_candidates_that_all_have_score_0_are_equally_likely() -> None:
    chances = probabilities((torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 2.0]]), 3.0))
    torch.testing.assert_close(chances, torch.tensor([[1 / 3] * 3, [0, 0.5, 0.5]], dtype=torch.float64))


def test_large_powers_neither_overflow_nor_underflow() -> None:
    chances = probabilities((torch.tensor([[1e-3, 2e-3], [1e3, 1e3]]), 1000.0))
    torch.testing.assert_close(chances, torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64))


def test_the_largest_and_smallest_numbers_pick_candidates_with_a_probability_above_0() -> None:
    chances = torch.tensor([[0.0, 0.3, 0.7, 0.0]] * 2, dtype=torch.float64)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert pick(chances, ends).tolist() == [1, 2]


# clusters and their losses


def test_clusters_are_those_of_lloyds_algorithm_and_the_same_every_time() -> None:
    middles = torch.eye(4, 16)
    points = torch.nn.functional.normalize(middles.repeat(25, 1) + 0.05 * torch.randn(100, 16), dim=1)
    centers = k_means(points, 4, np.random.default_rng(0))
    assert torch.equal(centers, k_means(points, 4, np.random.default_rng(0)))
    torch.testing.assert_close(centers.norm(dim=1), torch.ones(4))
    within = (points @ centers.T).amax(1).mean()
    started = (points @ points[np.random.default_rng(0).choice(100, 4, replace=False)].T).amax(1).mean()
    assert within > started
    index = (points @ centers.T).argmax(1)
    for j in index.unique():
        mean = torch.nn.functional.normalize(points[index == j].sum(0), dim=0)
        torch.testing.assert_close(centers[j], mean)  # where Lloyd's algorithm ends


def test_the_centre_of_an_empty_cluster_stays_finite() -> None:
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert torch.isfinite(k_means(points, 3, np.random.default_rng(0))).all()


def test_a_running_mean_is_over_about_a_hundred_values_however_many_are_added_at_once() -> None:
    def run(cut: int) -> RunningMeans:
        means = RunningMeans(3, torch.device("cpu"), prior=1.0)
        for _ in range(1200 // cut):
            means.add(torch.tensor([0, 2] * cut), torch.tensor([5.0, 1.0] * cut, dtype=torch.float64))
        return means

    assert run(1).means.tolist() == pytest.approx([5.0, 1.0, 1.0], abs=1e-4)
    assert run(1).means[1] == 1
    assert run(1).weights[0] == pytest.approx(RunningMeans.MEMORY, rel=1e-3)
    assert run(4).means.tolist() == pytest.approx(run(1).means.tolist(), rel=1e-3)
    one = RunningMeans(1, torch.device("cpu"), prior=1.0)
    one.add(torch.tensor([0]), torch.tensor([5.0], dtype=torch.float64))
    assert one.means[0] == pytest.approx((0.99 * 1 + 5) / 1.99)


def test_the_loss_of_a_cluster_is_relative_to_others_at_the_same_noise_level() -> None:
    found = Disagreement(torch.eye(3))
    for _ in range(300):  # cluster 1 is twice as wrong as cluster 0 at both levels, one of which is far harder
        clusters, tenths = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 9, 9])
        found.add(clusters, tenths, torch.tensor([1.0, 2.0, 100.0, 200.0], dtype=torch.float64))
    assert found.loss.means.tolist() == pytest.approx([2 / 3, 4 / 3, 1.0], rel=1e-2)


def test_losses_of_0_leave_all_clusters_equal() -> None:
    found = Disagreement(torch.eye(2))
    found.add(torch.tensor([0, 0]), torch.tensor([3, 4]), torch.zeros(2, dtype=torch.float64))
    assert found.loss.means.tolist() == [1, 1]


# in a training


@pytest.fixture
def make(tiny_family: Family, tiny_cache: LatentCache, tiny_pool: PromptPool) -> Make:
    def build(pool: PromptPool = tiny_pool, accelerator: Any = None, **settings: Any) -> PromptChoice:
        of = PromptChoiceSettings.model_validate(settings)
        accelerator = accelerator or Accelerator(cpu=True)
        return PromptChoice(tiny_family, of, BatchSource(tiny_cache, pool, SEED, 1, 1), accelerator)

    return build


def batch_of(text: PromptChoice, cache: LatentCache, pool: PromptPool, size: int = 24) -> Batch:
    return BatchSource(cache, pool, SEED, size, size, prompt_choice=text.settings)(0)[0]


def embedded(family: Family, prompts: Any) -> np.ndarray:
    """Return the embeddings, computed one by one, in float64."""
    return np.stack([family.text_embedding([prompt])[0].double().numpy() for prompt in prompts])


@pytest.mark.slow
def test_the_chosen_prompts_are_those_of_scores_in_float64(
    make: Make, tiny_family: Family, tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    text = make(candidates=4, novelty=2.0, disagreement=1.5, clusters=6)
    assert text.disagreement is not None
    text.disagreement.loss.sums = torch.tensor([1.0, 4.0, 0.5, 2.0, 3.0, 0.1], dtype=torch.float64)
    batch = batch_of(text, tiny_cache, tiny_pool)
    chosen = text.choose(batch)
    known = embedded(tiny_family, [tiny_cache[i][1] for i in range(len(tiny_cache))])
    losses, centers = text.disagreement.loss.sums.numpy(), text.disagreement.centers.double().numpy()
    assert batch.draws.prompt_choice is not None
    assert chosen.clusters is not None
    moved = 0
    for i, prompts in enumerate(batch.candidates):
        embeddings = embedded(tiny_family, prompts)
        nearest = (1 - embeddings @ known.T).min(1)
        clusters = (embeddings @ centers.T).argmax(1)
        score = np.where(nearest < 1e-5, 0, nearest) ** 2.0 * losses[clusters] ** 1.5
        share = np.cumsum(score / score.sum())
        kept = int(np.searchsorted(share, batch.draws.prompt_choice.pick[i].item(), side="right"))
        assert chosen.random_prompts[i] == prompts[kept]
        assert chosen.clusters[i] == clusters[kept]
        moved += kept > 0
    assert moved
    assert (chosen.cached_prompts, chosen.draws) == (batch.cached_prompts, batch.draws)
    assert chosen.stretch is None


def test_novelty_never_keeps_a_cached_prompt_if_there_is_another_candidate(
    make: Make, tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    text = make(candidates=4, novelty=0.5)
    batch = batch_of(text, tiny_cache, tiny_pool, 64)
    cached = {tiny_cache[i][1] for i in range(len(tiny_cache))}
    open_to = [not cached.issuperset(prompts) for prompts in batch.candidates]
    assert sum(cached.issuperset(prompts[:1]) for prompts in batch.candidates) > 3
    chosen = text.choose(batch).random_prompts
    assert not any(prompt in cached for prompt, new in zip(chosen, open_to, strict=True) if new)


@pytest.mark.slow
def test_the_stretch_is_the_relative_distance_to_the_power_of_the_settings(
    make: Make, tiny_family: Family, tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    text = make(distance=0.7)
    batch = text.choose(batch_of(text, tiny_cache, tiny_pool))
    own, random = embedded(tiny_family, batch.cached_prompts), embedded(tiny_family, batch.random_prompts)
    everything = embedded(tiny_family, tiny_pool)
    mean = (1 - everything @ everything.T).mean()  # two random prompts may be one
    expected = (np.clip(1 - (own * random).sum(1), 0, None) / mean) ** 0.7
    assert batch.stretch is not None
    np.testing.assert_allclose(batch.stretch.double().numpy(), expected, rtol=0.03, atol=1e-3)
    assert text.mean_distance is not None
    assert text.mean_distance.item() == pytest.approx(mean, rel=0.02)
    again = make(distance=0.7)
    assert again.mean_distance is not None
    assert torch.equal(again.mean_distance, text.mean_distance)


def test_without_scores_and_distance_nothing_is_embedded(
    make: Make, tiny_family: Family, tiny_cache: LatentCache, tiny_pool: PromptPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_family, "text_embedding", lambda _: pytest.fail("embedded in vain"))
    text = make(interpolate=0.5)
    batch = batch_of(text, tiny_cache, tiny_pool)
    assert text.choose(batch) is batch
    assert text.state() == {}


def test_only_counted_losses_change_the_running_means(
    make: Make, tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    text = make(candidates=2, disagreement=1.0, clusters=3)
    assert text.disagreement is not None
    batch = batch_of(text, tiny_cache, tiny_pool, 3)
    batch = replace(text.choose(batch), clusters=torch.tensor([0, 1, 1]))
    counted = torch.tensor([True, False, True])
    text.note(batch, torch.tensor([1.0, 99.0, 3.0]), torch.tensor([0.55, 0.1, 0.59]), counted)
    text.update()
    # the tenth's mean is (0.98 * 0 + 4) / 2 = 2, so the relative losses are 0.5 and 1.5
    assert text.disagreement.level.sums.nonzero().flatten().tolist() == [5]
    expected = [(0.99 + 0.5) / 1.99, (0.99 + 1.5) / 1.99, 1.0]
    assert text.disagreement.loss.means.tolist() == pytest.approx(expected)
    text.note(batch, torch.tensor([7.0, 7.0, 7.0]), torch.tensor([0.5] * 3), torch.zeros(3, dtype=torch.bool))
    before = text.state()
    text.update()  # with nothing to learn from, nothing changes
    assert all(torch.equal(tensor, before[name]) for name, tensor in text.state().items())


def test_two_processes_have_the_running_means_of_one(
    make: Make, tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    settings: dict[str, Any] = {"candidates": 2, "disagreement": 1.0, "clusters": 3}
    alone = make(**settings)
    batch = alone.choose(batch_of(alone, tiny_cache, tiny_pool, 8))
    output, level = torch.rand(8, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 0.99, 8)
    alone.note(batch, output, level, output > 0.3)
    (rows,) = alone._noted
    alone.update()
    both: Any = SimpleNamespace(gather=lambda tensor: rows if len(tensor) == 4 else pytest.fail("not its half"))
    for half in (slice(4), slice(4, 8)):
        one = make(accelerator=both, **settings)
        assert batch.clusters is not None
        one.note(replace(batch, clusters=batch.clusters[half]), output[half], level[half], output[half] > 0.3)
        one.update()
        assert all(torch.equal(tensor, alone.state()[name]) for name, tensor in one.state().items())


def test_the_running_means_are_restored(make: Make) -> None:
    settings: dict[str, Any] = {"candidates": 2, "disagreement": 1.0, "clusters": 3, "distance": 1.0}
    text, other = make(**settings), make(**settings)
    assert text.disagreement is not None
    text.disagreement.add(torch.tensor([1]), torch.tensor([4]), torch.tensor([2.0], dtype=torch.float64))
    text.disagreement.add(torch.tensor([0]), torch.tensor([4]), torch.tensor([9.0], dtype=torch.float64))
    text.disagreement.centers = unit(4, 3, text.disagreement.centers.shape[1])
    text.mean_distance = torch.tensor(0.3, dtype=torch.float64)
    assert not torch.equal(other.state()["loss_sums"], text.state()["loss_sums"])
    other.restore(text.state())
    assert other.state().keys() == text.state().keys()
    assert all(torch.equal(tensor, text.state()[name]) for name, tensor in other.state().items())


# errors


def test_a_pool_of_fewer_prompts_than_clusters_is_refused(make: Make, tmp_path: Path) -> None:
    pool = PromptPool.from_prompts(["a", "b", "c"], tmp_path / "pool.arrow")
    with pytest.raises(CondistillError, match=r"prompt_choice.clusters is 4 and the pool has 3 prompts; lower it"):
        make(pool, candidates=2, disagreement=1.0, clusters=4)
    check_pool(pool, PromptChoiceSettings(candidates=2, disagreement=1.0, clusters=3))


def test_source_weights_that_leave_too_few_prompts_for_the_clusters_are_refused(make: Make, tmp_path: Path) -> None:
    for name, n in (("a", 2), ("b", 50)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(n)))
    pool = PromptPool.build([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "pool.arrow")
    weights = {"a.txt": 1e6, "b.txt": 0.001}
    with pytest.raises(CondistillError, match=r"clusters is 5, and a large sample of the pool has 2 different prompts"):
        make(pool, candidates=2, disagreement=1.0, clusters=5, source_weights=weights)


def test_distance_is_refused_for_prompts_with_equal_embeddings(make: Make, tmp_path: Path) -> None:
    pool = PromptPool.from_prompts(["a star"], tmp_path / "pool.arrow")
    with pytest.raises(CondistillError, match=r"prompt_choice.distance needs prompts that differ.*set it to 0"):
        make(pool, distance=1.0)


def test_weights_of_other_files_are_refused_before_anything_is_embedded(make: Make, tiny_family: Family) -> None:
    with pytest.raises(CondistillError, match=r"source_weights names 'a\.txt'"):
        make(source_weights={"a.txt": 1.0}, distance=1.0)


def test_embedding_in_parts_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    text, prompts = make(), [f"a star {i}" for i in range(7)]
    whole = text.embed(prompts)
    monkeypatch.setattr(module, "_BATCH", 3)
    torch.testing.assert_close(text.embed(prompts), whole)
