"""What a training step needs before the teacher is asked: latents, noise, and two prompts per sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.distill.draws import Draws, draw
from condistill.prompts.pool import PromptPool

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Samples of one forward: B of everything."""

    x_0: Tensor
    """Cached latents `[B, C, h, w]`."""
    own: Sequence[str]
    random: Sequence[str]
    draws: Draws
    guidance_scale: Tensor | None = None
    """Float64 `[B]`, where the student is told one."""


@dataclass(frozen=True)
class BatchSource:
    """Makes the batches of a step for one process: the same samples however they are cut up.

    Without a cached latent, x_0 is 0 and a sample's own prompt is the random one: every sample is on a path from noise.
    """

    cache: LatentCache
    pool: PromptPool
    seed: int
    batch_size: int
    micro_batch_size: int
    process: int = 0
    processes: int = 1
    guidance_range: tuple[float, float] | None = None
    """Between which guidance scales are drawn, where the student is told one."""

    def __call__(self, step: int) -> list[Batch]:
        """The micro-batches of a step that fall to this process, in order."""
        return [self._batch(step, positions) for positions in self._parts]

    @property
    def positions(self) -> list[int]:
        """Places in the global batch that fall to this process, micro-batch by micro-batch."""
        return [position for positions in self._parts for position in positions]

    @property
    def _parts(self) -> list[range]:
        stride = self.processes * self.micro_batch_size
        first = self.process * self.micro_batch_size
        return [range(start, start + self.micro_batch_size) for start in range(first, self.batch_size, stride)]

    def _batch(self, step: int, positions: range) -> Batch:
        shape = self.cache.latent_shape
        sizes = {"cache_size": len(self.cache), "pool_size": len(self.pool)}
        told = self.guidance_range
        draws = draw(self.seed, step, positions, latent_shape=shape, with_guidance=told is not None, **sizes)
        scale = told[0] + (told[1] - told[0]) * draws.guidance if told and draws.guidance is not None else None
        random = self.pool.take(draws.random)
        if not len(self.cache):
            return Batch(torch.zeros(len(positions), *shape), random, random, draws, scale)
        latents, own = self.cache.take(draws.cached)
        return Batch(torch.from_numpy(latents), own, random, draws, scale)


def prefetch(make: Callable[[int], T], steps: range, *, ahead: int = 2) -> Iterator[T]:
    """`make(step)` for every step, made in a thread while the last one is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as executor:
        waiting = deque(executor.submit(make, step) for step in steps[:ahead])
        for step in steps:
            made = waiting.popleft().result()
            if step + ahead in steps:
                waiting.append(executor.submit(make, step + ahead))
            yield made
