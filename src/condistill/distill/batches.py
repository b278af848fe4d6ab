"""The inputs of a training step that need no model: latents, noise, and the prompts of every sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.config.conditioning import PromptChoiceSettings
from condistill.config.distill import DistillSettings
from condistill.distill.draws import Draws, draw
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool
from condistill.prompts.sources import SourceMix

T = TypeVar("T")


@dataclass(frozen=True)
class Blend:
    """A second prompt for each of B samples."""

    prompts: Sequence[str]
    weight: Tensor
    """Weight of the second prompt, in [0, 1), `[B]`; 0: not blended."""

    def where(self, mask: Tensor) -> Blend:
        """Return the blend where `mask` `[B]` is true, and no blend elsewhere."""
        return replace(self, weight=torch.where(mask, self.weight, 0.0))


@dataclass(frozen=True)
class Batch:
    """A micro-batch: B samples of one forward."""

    x_0: Tensor
    """Cached latents `[B, C, h, w]`."""
    cached_prompts: Sequence[str]
    """The prompts that `x_0` was generated for."""
    random_prompts: Sequence[str]
    draws: Draws
    guidance_scale: Tensor | None = None
    """Input of the student, float64 `[B]`; None if it takes no guidance scale."""
    candidates: Sequence[Sequence[str]] = ()
    """`[B][n]` prompts to choose the random prompts from; until then, the first is the random prompt."""
    blend: Blend | None = None
    """Second prompts that random prompts are blended with; None: no prompt is blended."""
    stretch: Tensor | None = None
    """Argument of `random_conditioning.effective_noise_level`, `[B]`; None: 1."""
    clusters: Tensor | None = None
    """Clusters of the random prompts, `[B]`; None if there are no clusters."""


@dataclass(frozen=True)
class BatchSource:
    """The batches of one process. The samples of a step are the same however its batch is cut.

    With an empty cache, x_0 is 0 and the random prompts take the place of the cached ones: every sample is then on a
    path from pure noise.
    """

    cache: LatentCache
    pool: PromptPool
    seed: int
    batch_size: int
    micro_batch_size: int
    process: int = 0
    processes: int = 1
    prompt_choice: PromptChoiceSettings | None = None
    guidance_range: tuple[float, float] | None = None
    """Lowest and highest guidance scale; None if the student takes no guidance scale."""

    def __call__(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step for this process, in order."""
        return [self._batch(step, positions) for positions in self._parts]

    @property
    def positions(self) -> list[int]:
        """Positions in the global batch of this process's samples, micro-batch by micro-batch."""
        return [position for positions in self._parts for position in positions]

    @property
    def _parts(self) -> list[range]:
        stride = self.processes * self.micro_batch_size
        first = self.process * self.micro_batch_size
        return [range(start, start + self.micro_batch_size) for start in range(first, self.batch_size, stride)]

    def _batch(self, step: int, positions: range) -> Batch:
        shape, guidance_range = self.cache.latent_shape, self.guidance_range
        draws = draw(
            self.seed,
            step,
            positions,
            cache_size=len(self.cache),
            pool_size=len(self.pool),
            latent_shape=shape,
            with_guidance=guidance_range is not None,
            further_prompts=self.prompt_choice.candidates + 1 if self.prompt_choice else 0,
        )
        guidance_scale = None
        if guidance_range and draws.guidance is not None:
            low, high = guidance_range
            guidance_scale = low + (high - low) * draws.guidance
        candidates, blend = self._prompts(draws)
        random_prompts = [prompts[0] for prompts in candidates]
        x_0, cached_prompts = torch.zeros(len(positions), *shape), random_prompts
        if len(self.cache):
            latents, cached_prompts = self.cache.take(draws.cached)
            x_0 = torch.from_numpy(latents)
        return Batch(
            x_0,
            cached_prompts,
            random_prompts,
            draws,
            candidates=candidates,
            blend=blend,
            guidance_scale=guidance_scale,
        )

    def _prompts(self, draws: Draws) -> tuple[list[list[str]], Blend | None]:
        """Return the candidates for the random prompt of every sample, and the prompts to blend it with."""
        candidates = [[prompt] for prompt in self.pool.take(draws.random)]
        choice, numbers = self.prompt_choice, draws.prompt_choice
        if choice is None or numbers is None:
            return candidates, None
        indices = self._mix.indices(numbers.prompts)  # [B, 1 + n]: a prompt to blend with, then the candidates
        kept = 0 if choice.source_weights else 1  # the first candidate ignores source weights, so it is replaced too
        candidates = [
            first[:kept] + self.pool.take(row) for first, row in zip(candidates, indices[:, 1 + kept :], strict=True)
        ]
        if not choice.interpolate:
            return candidates, None
        return candidates, Blend(self.pool.take(indices[:, 0]), numbers.blend).where(
            numbers.blend_coin < choice.interpolate
        )

    @cached_property
    def _mix(self) -> SourceMix:
        return SourceMix.of(self.pool, self.prompt_choice.source_weights if self.prompt_choice else None)


def batch_source(
    cache: LatentCache, pool: PromptPool, settings: DistillSettings, *, seed: int, accelerator: Accelerator
) -> BatchSource:
    """Cut the global batch evenly into processes and micro-batches.

    Raises:
        CondistillError: the batch cannot be cut evenly.
    """
    processes = accelerator.num_processes
    share, rest = divmod(settings.batch_size, processes)
    micro_batch_size = settings.micro_batch_size or share
    if rest or share % micro_batch_size:
        raise CondistillError(
            f"distill.batch_size {settings.batch_size} cannot be cut evenly into {processes} process(es) with "
            f"distill.micro_batch_size {micro_batch_size}; make it a multiple of {processes * micro_batch_size}"
        )
    return BatchSource(
        cache,
        pool,
        seed,
        settings.batch_size,
        micro_batch_size,
        process=accelerator.process_index,
        processes=processes,
        prompt_choice=settings.conditioning.prompt_choice,
        guidance_range=settings.guidance_range,
    )


def prefetch(make: Callable[[int], T], steps: range, *, ahead: int = 2) -> Iterator[T]:
    """Yield `make(step)` for every step; a thread makes the next ones while the last one is in use."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as executor:
        waiting = deque(executor.submit(make, step) for step in steps[:ahead])
        for step in steps:
            made = waiting.popleft().result()
            if step + ahead in steps:
                waiting.append(executor.submit(make, step + ahead))
            yield made
