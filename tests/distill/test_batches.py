from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training import SEED, settings_of

from condistill.cache.latents import LatentCache
from condistill.config.conditioning import PromptChoiceSettings
from condistill.distill.batches import Batch, BatchSource, batch_source, prefetch
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool


def samples(batches: list[Batch]) -> list[tuple[str, str, float, bytes, bytes]]:
    """Return the prompts and numbers of each sample."""
    return [
        (cached, random, uniform, noise.numpy().tobytes(), x_0.numpy().tobytes())
        for batch in batches
        for cached, random, uniform, noise, x_0 in zip(
            batch.cached_prompts,
            batch.random_prompts,
            batch.draws.uniform.tolist(),
            batch.draws.noise,
            batch.x_0,
            strict=True,
        )
    ]


@pytest.mark.parametrize(("processes", "micro"), [(1, 12), (1, 3), (2, 6), (2, 3), (3, 2), (4, 3), (12, 1)])
def test_the_global_batch_does_not_depend_on_how_it_is_cut(
    tiny_cache: LatentCache, tiny_pool: PromptPool, processes: int, micro: int
) -> None:
    whole = samples(BatchSource(tiny_cache, tiny_pool, 5, 12, 12)(3))
    parts = [BatchSource(tiny_cache, tiny_pool, 5, 12, micro, process, processes)(3) for process in range(processes)]
    assert {len(part) for part in parts} == {12 // (processes * micro)}
    assert {len(batch.cached_prompts) for part in parts for batch in part} == {micro}
    in_order = [part[i] for i in range(len(parts[0])) for part in parts]
    assert samples(in_order) == whole


def test_every_step_has_its_own_samples(tiny_cache: LatentCache, tiny_pool: PromptPool) -> None:
    source = BatchSource(tiny_cache, tiny_pool, 5, 4, 4)
    noises = {sample[3] for step in range(4) for sample in samples(source(step))}
    assert len(noises) == 16


def test_latents_come_with_the_prompt_that_they_were_generated_for(
    tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    (batch,) = BatchSource(tiny_cache, tiny_pool, 5, 8, 8)(0)
    assert batch.x_0.dtype == torch.float32
    for x_0, cached_prompt, index in zip(batch.x_0, batch.cached_prompts, batch.draws.cached, strict=True):
        latents, prompt = tiny_cache[index]
        assert cached_prompt == prompt
        assert torch.equal(x_0, torch.tensor(latents).float())
    assert list(batch.random_prompts) == [tiny_pool[i] for i in batch.draws.random]


def source_of(cache: LatentCache, pool: PromptPool, size: int, **text: object) -> BatchSource:
    return BatchSource(cache, pool, 5, size, size, prompt_choice=PromptChoiceSettings.model_validate(text))


def test_a_prompt_choice_with_default_settings_changes_no_sample(
    tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    plain = BatchSource(tiny_cache, tiny_pool, 5, 8, 8)(2)
    assert samples(source_of(tiny_cache, tiny_pool, 8)(2)) == samples(plain)
    (chosen,) = source_of(tiny_cache, tiny_pool, 8, candidates=3, novelty=1.0)(2)
    assert [prompts[0] for prompts in chosen.candidates] == list(plain[0].random_prompts)


def test_candidates_come_from_the_whole_pool_and_do_not_depend_on_how_the_batch_is_cut(
    tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    text = PromptChoiceSettings(candidates=40, novelty=1.0, interpolate=0.5)
    (whole,) = BatchSource(tiny_cache, tiny_pool, 5, 12, 12, prompt_choice=text)(3)
    parts = [BatchSource(tiny_cache, tiny_pool, 5, 12, 2, process, 3, text)(3) for process in range(3)]
    in_order = [part[i] for i in range(2) for part in parts]
    assert [prompts for batch in in_order for prompts in batch.candidates] == list(whole.candidates)
    assert {len(prompts) for prompts in whole.candidates} == {40}
    assert len({prompt for prompts in whole.candidates for prompt in prompts}) > 0.95 * len(tiny_pool)
    assert whole.blend is not None
    assert [prompt for batch in in_order for prompt in batch.blend.prompts] == whole.blend.prompts
    assert torch.equal(torch.cat([batch.blend.weight for batch in in_order]), whole.blend.weight)


def test_the_share_of_blended_samples_is_that_of_the_settings_with_uniform_weights(
    tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    (batch,) = source_of(tiny_cache, tiny_pool, 1000, interpolate=0.3)(0)
    assert batch.blend is not None
    weight = batch.blend.weight
    assert abs((weight > 0).float().mean().item() - 0.3) < 3 * (0.21 / 1000) ** 0.5
    assert abs(weight[weight > 0].mean().item() - 0.5) < 3 * (1 / 12 / 300) ** 0.5
    assert (weight < 1).all()
    assert BatchSource(tiny_cache, tiny_pool, 5, 8, 8)(0)[0].blend is None


def test_random_prompts_come_from_the_sources_in_proportion_to_their_weights(
    tiny_cache: LatentCache, tmp_path: Path
) -> None:
    (tmp_path / "many.txt").write_text("".join(f"many {i}\n" for i in range(900)))
    (tmp_path / "few.txt").write_text("few 1\nfew 2\n")
    pool = PromptPool.build([tmp_path / "many.txt", tmp_path / "few.txt"], tmp_path / "pool.arrow")
    weights = {"many.txt": 1.0, "few.txt": 3.0}
    text = {"source_weights": weights, "candidates": 2, "novelty": 1.0, "interpolate": 1.0}
    (batch,) = source_of(tiny_cache, pool, 600, **text)(0)
    assert batch.blend is not None
    for prompts in (*zip(*batch.candidates, strict=True), batch.blend.prompts):
        share = np.mean([prompt.startswith("few") for prompt in prompts])
        assert abs(share - 0.75) < 3 * (0.1875 / 600) ** 0.5
    assert list(batch.random_prompts) == [prompts[0] for prompts in batch.candidates]


@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 5), range(7, 27)])
def test_prefetching_keeps_the_order_and_skips_nothing(steps: range) -> None:
    def slow_at_first(step: int) -> int:
        time.sleep(0.01 if step == steps.start else 0)
        return step

    assert list(prefetch(slow_at_first, steps)) == list(steps)


def test_prefetching_stays_at_most_two_batches_ahead() -> None:
    made: list[int] = []
    used = []
    for step in prefetch(lambda step: made.append(step) or step, range(10), ahead=2):
        used.append(step)
        assert len(made) <= len(used) + 2


def test_the_next_batch_is_made_while_one_is_in_use() -> None:
    second = threading.Event()
    for step in prefetch(lambda step: second.set() if step == 1 else None, range(2)):
        del step
        assert second.wait(timeout=5)


def test_an_error_in_making_a_batch_is_raised_where_the_batch_is_used() -> None:
    def fail_at_2(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    batches = prefetch(fail_at_2, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_guidance_scales_are_in_their_range_and_do_not_depend_on_how_the_batch_is_cut(
    tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    whole, halves = (
        BatchSource(tiny_cache, tiny_pool, 5, 64, micro, guidance_range=(2.0, 8.0))(3) for micro in (64, 32)
    )
    scales = [batch.guidance_scale for batch in (*whole, *halves) if batch.guidance_scale is not None]
    assert torch.equal(scales[0], torch.cat(scales[1:]))
    assert scales[0].min() >= 2
    assert scales[0].max() < 8
    assert scales[0].max() - scales[0].min() > 4
    (without,) = BatchSource(tiny_cache, tiny_pool, 5, 64, 64)(3)
    assert without.guidance_scale is None


@pytest.mark.parametrize(
    ("processes", "batch", "message"),
    [
        (3, {"batch_size": 4}, r"batch_size 4 cannot be cut evenly into 3 process.* multiple of 3"),
        (2, {"batch_size": 12, "micro_batch_size": 4}, r"batch_size 12 .*micro_batch_size 4; make it a multiple of 8"),
    ],
)
def test_a_batch_that_cannot_be_cut_evenly_is_refused(
    tiny_cache: LatentCache, tiny_pool: PromptPool, processes: int, batch: dict[str, int], message: str
) -> None:
    accelerator: Any = SimpleNamespace(num_processes=processes, process_index=0)
    with pytest.raises(CondistillError, match=message):
        batch_source(tiny_cache, tiny_pool, settings_of(**batch), seed=0, accelerator=accelerator)


def test_processes_share_one_global_batch(tiny_cache: LatentCache, tiny_pool: PromptPool) -> None:
    settings = settings_of(batch_size=8)
    parts = []
    for process in range(2):
        accelerator: Any = SimpleNamespace(num_processes=2, process_index=process)
        (batch,) = batch_source(tiny_cache, tiny_pool, settings, seed=SEED, accelerator=accelerator)(4)
        parts.append(batch.draws.noise)
    (whole,) = BatchSource(tiny_cache, tiny_pool, SEED, 8, 8)(4)
    assert torch.equal(torch.cat(parts), whole.draws.noise)
