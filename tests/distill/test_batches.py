from __future__ import annotations

import threading
import time

import pytest
import torch

from condistill.cache.latents import LatentCache
from condistill.distill.batches import Batch, BatchSource, prefetch
from condistill.prompts.pool import PromptPool


def samples(batches: list[Batch]) -> list[tuple[str, str, float, bytes, bytes]]:
    """What each sample is made of."""
    return [
        (own, random, time, noise.numpy().tobytes(), x_0.numpy().tobytes())
        for batch in batches
        for own, random, time, noise, x_0 in zip(
            batch.own, batch.random, batch.draws.uniform.tolist(), batch.draws.noise, batch.x_0, strict=True
        )
    ]


@pytest.mark.parametrize(("processes", "micro"), [(1, 12), (1, 3), (2, 6), (2, 3), (3, 2), (4, 3), (12, 1)])
def test_the_global_batch_is_the_same_however_it_is_cut(
    tiny_cache: LatentCache, tiny_pool: PromptPool, processes: int, micro: int
) -> None:
    whole = samples(BatchSource(tiny_cache, tiny_pool, 5, 12, 12)(3))
    parts = [BatchSource(tiny_cache, tiny_pool, 5, 12, micro, process, processes)(3) for process in range(processes)]
    assert {len(part) for part in parts} == {12 // (processes * micro)}
    assert {len(batch.own) for part in parts for batch in part} == {micro}
    in_order = [part[i] for i in range(len(parts[0])) for part in parts]
    assert samples(in_order) == whole


def test_every_step_has_its_own_samples(tiny_cache: LatentCache, tiny_pool: PromptPool) -> None:
    source = BatchSource(tiny_cache, tiny_pool, 5, 4, 4)
    noises = {sample[3] for step in range(4) for sample in samples(source(step))}
    assert len(noises) == 16


def test_latents_come_with_the_prompt_they_were_drawn_for(tiny_cache: LatentCache, tiny_pool: PromptPool) -> None:
    (batch,) = BatchSource(tiny_cache, tiny_pool, 5, 8, 8)(0)
    assert batch.x_0.dtype == torch.float32
    for x_0, own, index in zip(batch.x_0, batch.own, batch.draws.cached, strict=True):
        latents, prompt = tiny_cache[index]
        assert own == prompt
        assert torch.equal(x_0, torch.tensor(latents).float())
    assert list(batch.random) == [tiny_pool[i] for i in batch.draws.random]


@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 5), range(7, 27)])
def test_prefetching_keeps_order_and_leaves_nothing_out(steps: range) -> None:
    def slow_at_first(step: int) -> int:
        time.sleep(0.01 if step == steps.start else 0)
        return step

    assert list(prefetch(slow_at_first, steps)) == list(steps)


def test_prefetching_stays_only_so_far_ahead() -> None:
    made: list[int] = []
    used = []
    for step in prefetch(lambda step: made.append(step) or step, range(10), ahead=2):
        used.append(step)
        assert len(made) <= len(used) + 2


def test_the_next_batch_is_made_while_one_is_used() -> None:
    second = threading.Event()
    for step in prefetch(lambda step: second.set() if step == 1 else None, range(2)):
        del step
        assert second.wait(timeout=5)


def test_an_error_of_the_maker_reaches_the_user_of_its_batch() -> None:
    def fail_at_2(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    batches = prefetch(fail_at_2, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_guidance_scales_are_drawn_from_their_range_however_the_batch_is_cut(
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
