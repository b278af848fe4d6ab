"""Everything random in a training sample, as a function of (seed, step, position in the global batch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condistill.utils.randomness import Stream, generator


@dataclass(frozen=True)
class TextDraws:
    """What `distill.conditioning.prompt_choice` draws beside, of B samples; everything in [0, 1)."""

    prompts: NDArray[np.float64]
    """Where further prompts are: which source, and where in it, `[B, n, 2]`."""
    pick: Tensor
    """Which candidate is kept, `[B]`."""
    blend_coin: Tensor
    """Whether two prompts are blended, `[B]`."""
    blend: Tensor
    """How much of the second one, `[B]`."""


@dataclass(frozen=True)
class Draws:
    """The draws of B samples."""

    cached: list[int]
    """Which cached latent; 0 where there is none."""
    random: list[int]
    """Which prompt of the pool, should the sample be re-paired."""
    uniform: Tensor
    """Where t comes from, in [0, 1), `[B]`."""
    coin: Tensor
    """Whether to re-pair, in [0, 1), `[B]`."""
    empty_coin: Tensor
    """Whether to empty the prompt, in [0, 1), `[B]`."""
    path_coin: Tensor
    """Whose prediction a path follows, in [0, 1), `[B]`."""
    noise: Tensor
    """Standard normal, `[B, C, h, w]`."""
    guidance: Tensor | None = None
    """Where a guidance scale comes from, in [0, 1), `[B]`; only where one is asked for."""
    text: TextDraws | None = None
    """None unless asked for."""


def draw(
    seed: int,
    step: int,
    positions: Sequence[int],
    *,
    cache_size: int,
    pool_size: int,
    latent_shape: tuple[int, int, int],
    with_guidance: bool = False,
    texts: int = 0,
) -> Draws:
    """Draw the samples at these positions of a step's global batch, each with so many further `texts`.

    `texts` come last in a sample's stream, so that they change nothing that others see.
    """
    count = len(positions)
    indices = np.empty((count, 2), np.int64)
    uniforms = np.empty((count, 4), np.float64)
    noise = np.empty((count, *latent_shape), np.float32)
    guidance = np.empty(count, np.float64)
    coins, prompts = np.empty((count, 3), np.float64), np.empty((count, texts, 2), np.float64)
    for row, position in enumerate(positions):
        rng = generator(seed, Stream.TRAINING, position, step)
        indices[row] = rng.integers(0, max(cache_size, 1)), rng.integers(0, pool_size)
        uniforms[row, :3] = rng.random(3)
        rng.standard_normal(out=noise[row], dtype=np.float32)
        uniforms[row, 3], guidance[row] = rng.random(2)
        if texts:
            coins[row] = rng.random(3)
            prompts[row] = rng.random((texts, 2))
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
        text=TextDraws(prompts, *torch.from_numpy(coins).unbind(1)) if texts else None,
    )
