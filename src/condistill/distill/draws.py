"""All random numbers of a training sample, as a function of (seed, step, position in the global batch).

So a sample does not depend on how the batch is cut into processes and micro-batches, nor on restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condistill.utils.randomness import Stream, generator


@dataclass(frozen=True)
class PromptDraws:
    """Random numbers in [0, 1) of B samples that only `distill.conditioning.prompt_choice` needs."""

    prompts: NDArray[np.float64]
    """A source of prompts and a place in it, for each further prompt, `[B, n, 2]`."""
    pick: Tensor
    """Chooses one of the candidates, `[B]`."""
    blend_coin: Tensor
    """Decides whether two prompts are blended, `[B]`."""
    blend: Tensor
    """Weight of the second prompt of a blend, `[B]`."""


@dataclass(frozen=True)
class Draws:
    """Random numbers of B samples."""

    cached: list[int]
    """Indices into the cache; 0 for an empty cache."""
    random: list[int]
    """Indices into the pool of the random prompts."""
    uniform: Tensor
    """Chooses the timestep, in [0, 1), `[B]`."""
    coin: Tensor
    """Decides whether the prompt is replaced, in [0, 1), `[B]`."""
    empty_coin: Tensor
    """Decides whether the prompt becomes "", in [0, 1), `[B]`."""
    path_coin: Tensor
    """Decides whose prediction a path follows, in [0, 1), `[B]`."""
    noise: Tensor
    """Standard normal, `[B, C, h, w]`."""
    guidance: Tensor | None = None
    """Chooses the guidance scale, in [0, 1), `[B]`; None unless `draw` has `with_guidance`."""
    prompt_choice: PromptDraws | None = None
    """None unless `draw` has `further_prompts`."""


def draw(
    seed: int,
    step: int,
    positions: Sequence[int],
    *,
    cache_size: int,
    pool_size: int,
    latent_shape: tuple[int, int, int],
    with_guidance: bool = False,
    further_prompts: int = 0,
) -> Draws:
    """Draw the random numbers of the samples at `positions` of a step's global batch.

    The numbers of `further_prompts` come last in a sample's stream, so that they do not change any other number.
    """
    count = len(positions)
    indices = np.empty((count, 2), np.int64)
    uniforms = np.empty((count, 4), np.float64)
    noise = np.empty((count, *latent_shape), np.float32)
    guidance = np.empty(count, np.float64)
    coins, prompts = np.empty((count, 3), np.float64), np.empty((count, further_prompts, 2), np.float64)
    for row, position in enumerate(positions):
        rng = generator(seed, Stream.TRAINING, position, step)
        indices[row] = rng.integers(0, max(cache_size, 1)), rng.integers(0, pool_size)
        uniforms[row, :3] = rng.random(3)
        rng.standard_normal(out=noise[row], dtype=np.float32)
        uniforms[row, 3], guidance[row] = rng.random(2)
        if further_prompts:
            coins[row] = rng.random(3)
            prompts[row] = rng.random((further_prompts, 2))
    uniform, coin, empty_coin, path_coin = torch.from_numpy(uniforms).unbind(1)
    return Draws(
        cached=indices[:, 0].tolist(),
        random=indices[:, 1].tolist(),
        uniform=uniform,
        coin=coin,
        empty_coin=empty_coin,
        path_coin=path_coin,
        noise=torch.from_numpy(noise),
        guidance=torch.from_numpy(guidance) if with_guidance else None,
        prompt_choice=PromptDraws(prompts, *torch.from_numpy(coins).unbind(1)) if further_prompts else None,
    )
