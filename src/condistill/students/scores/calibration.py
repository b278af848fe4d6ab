"""Calibration batches: noised cached latents, with their own prompts, in which a teacher's layers are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, generator

SAMPLES = 64


@dataclass(frozen=True)
class Calibration:
    """Where calibration batches come from."""

    cache: LatentCache
    seed: int
    batch_size: int
    """Samples per batch; the samples do not depend on it."""
    guidance_range: tuple[float, float] | None = None
    """Lowest and highest guidance scale, for a teacher that takes the scale as an input."""


@dataclass(frozen=True)
class CalibrationBatch:
    """B noised latents on the teacher's device, and what an ideal denoiser predicts for them."""

    x_t: Tensor
    """`[B, C, h, w]`."""
    timesteps: Tensor
    """`[B]`."""
    condition: Condition
    target: Tensor
    """`[B, C, h, w]`: the noise, v or flow velocity, as the teacher predicts."""


def calibration_batches(
    family: Family, calibration: Calibration, *, samples: int = SAMPLES
) -> Iterator[CalibrationBatch]:
    """Yield `samples` samples in batches; the noise level of sample i is uniform in [i / samples, (i + 1) / samples).

    The samples depend on the seed alone. A latent is used twice only where the cache holds fewer than `samples`.
    """
    cache, seed = calibration.cache, calibration.seed
    order = generator(seed, Stream.CALIBRATION, samples).permutation(len(cache))
    for first in range(0, samples, calibration.batch_size):
        rows = range(first, min(first + calibration.batch_size, samples))
        rngs = [generator(seed, Stream.CALIBRATION, row) for row in rows]
        levels = [(row + rng.random()) / samples for row, rng in zip(rows, rngs, strict=True)]
        timesteps = family.noise.timesteps(torch.tensor(levels, dtype=torch.float64)).to(family.device)
        latents, prompts = cache.take([int(order[row % len(cache)]) for row in rows])
        x_0 = torch.from_numpy(latents).to(family.device)
        noise = torch.from_numpy(np.stack([rng.standard_normal(x_0.shape[1:], dtype=np.float32) for rng in rngs]))
        noise = noise.to(family.device)
        condition = family.encode(prompts)
        if family.has_image_condition:
            uniform = torch.tensor([rng.random() for rng in rngs], dtype=torch.float64)
            condition = family.training_condition(condition, x_0, uniform)
        if calibration.guidance_range:
            low, high = calibration.guidance_range
            guidance_scale = torch.tensor([rng.uniform(low, high) for rng in rngs], dtype=torch.float64)
            condition = condition.with_guidance_scale(guidance_scale)
        x_t = family.noise.add_noise(x_0, noise, timesteps)
        yield CalibrationBatch(x_t, timesteps, condition, family.noise.target(x_0, noise, timesteps))
