"""What a training step needs before the teacher is asked: latents, noise, and two prompts per sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.config.conditioning import PromptChoiceSettings
from condistill.distill.draws import Draws, draw
from condistill.prompts.pool import PromptPool
from condistill.prompts.sources import SourceMix

T = TypeVar("T")


@dataclass(frozen=True)
class Blend:
    """A second prompt for each of B samples."""

    partners: Sequence[str]
    weight: Tensor
    """How much it counts, in [0, 1), `[B]`; 0: not at all."""

    def where(self, wanted: Tensor) -> Blend:
        """The same where `wanted` `[B]`, and nothing elsewhere."""
        return replace(self, weight=torch.where(wanted, self.weight, 0.0))


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
    candidates: Sequence[Sequence[str]] = ()
    """Prompts of which one is chosen to be `random`, B times n; the first, until it is."""
    blend: Blend | None = None
    """What random prompts are blended with; None: nothing."""
    stretch: Tensor | None = None
    """Factor of 1 - u that p(u) is asked with, `[B]`; None: 1. See `prompt_choice.effective_noise_level`."""
    clusters: Tensor | None = None
    """Which cluster the random prompts belong to, `[B]`; None: there are no clusters."""


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
    text: PromptChoiceSettings | None = None
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
        texts = self.text.candidates + 1 if self.text else 0
        told = self.guidance_range
        draws = draw(
            self.seed, step, positions, latent_shape=shape, texts=texts, with_guidance=told is not None, **sizes
        )
        scale = told[0] + (told[1] - told[0]) * draws.guidance if told and draws.guidance is not None else None
        candidates, blend = self._texts(draws)
        random = [prompts[0] for prompts in candidates]
        x_0, own = torch.zeros(len(positions), *shape), random
        if len(self.cache):
            latents, own = self.cache.take(draws.cached)
            x_0 = torch.from_numpy(latents)
        return Batch(x_0, own, random, draws, candidates=candidates, blend=blend, guidance_scale=scale)

    def _texts(self, draws: Draws) -> tuple[list[list[str]], Blend | None]:
        """The random prompts of every sample, and what they are blended with."""
        candidates = [[prompt] for prompt in self.pool.take(draws.random)]
        if self.text is None or draws.text is None:
            return candidates, None
        indices = self._mix.indices(draws.text.prompts)  # [B, 1 + n]: what to blend with, then the candidates
        known = 0 if self.text.source_weights else 1  # weights choose the first one as well
        candidates = [
            old[:known] + self.pool.take(row) for old, row in zip(candidates, indices[:, 1 + known :], strict=True)
        ]
        if not self.text.interpolate:
            return candidates, None
        blended = draws.text.blend_coin < self.text.interpolate
        return candidates, Blend(self.pool.take(indices[:, 0]), draws.text.blend).where(blended)

    @cached_property
    def _mix(self) -> SourceMix:
        return SourceMix.of(self.pool, self.text.source_weights if self.text else None)


def prefetch(make: Callable[[int], T], steps: range, *, ahead: int = 2) -> Iterator[T]:
    """`make(step)` for every step, made in a thread while the last one is used."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as executor:
        waiting = deque(executor.submit(make, step) for step in steps[:ahead])
        for step in steps:
            made = waiting.popleft().result()
            if step + ahead in steps:
                waiting.append(executor.submit(make, step + ahead))
            yield made
