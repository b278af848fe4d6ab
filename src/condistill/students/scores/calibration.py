"""What a teacher's layers are classified by: states that its student will learn from, with their own prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.errors import CorruptError
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.utils.atomic import atomic_file
from condistill.utils.randomness import Stream, generator

SAMPLES = 64
T = TypeVar("T")


@dataclass(frozen=True)
class States:
    """B states that a teacher is looked at in, and what it should say there; on its device."""

    x_t: Tensor
    """`[B, C, h, w]`."""
    timesteps: Tensor
    condition: Condition
    target: Tensor
    """`[B, C, h, w]`."""


def cached_states(
    family: Family,
    cache: LatentCache,
    *,
    seed: int,
    batch_size: int,
    samples: int = SAMPLES,
    guidance_range: tuple[float, float] | None = None,
) -> Iterator[States]:
    """Noised latents of a cache with their own prompts; sample i has a noise level of the i-th part of all.

    Which they are depends on the seed alone. A latent comes again only where there are fewer than samples.

    Args:
        guidance_range: of scales, for teachers that are told one.
    """
    order = generator(seed, Stream.CALIBRATION, samples).permutation(len(cache))
    for first in range(0, samples, batch_size):
        rows = range(first, min(first + batch_size, samples))
        rngs = [generator(seed, Stream.CALIBRATION, row) for row in rows]
        parts = [(row + rng.random()) / samples for row, rng in zip(rows, rngs, strict=True)]
        uniform = torch.tensor(parts, dtype=torch.float64)
        latents, prompts = cache.take([int(order[row % len(cache)]) for row in rows])
        x_0 = torch.from_numpy(latents).to(family.device)
        noise = torch.from_numpy(np.stack([rng.standard_normal(x_0.shape[1:], dtype=np.float32) for rng in rngs]))
        noise, timesteps = noise.to(family.device), family.noise.timesteps(uniform).to(family.device)
        condition = family.encode(prompts)
        if family.has_image_condition:
            places = torch.tensor([rng.random() for rng in rngs], dtype=torch.float64)
            condition = family.training_condition(condition, x_0, places)
        if guidance_range:
            low, high = guidance_range
            told = torch.tensor([rng.uniform(low, high) for rng in rngs], dtype=torch.float64)
            condition = condition.with_guidance_scale(told)
        yield States(
            family.noise.add_noise(x_0, noise, timesteps),
            timesteps,
            condition,
            family.noise.target(x_0, noise, timesteps),
        )


def kept(
    file: Path, accelerator: Any, write: Callable[[Path], None], read: Callable[[Path], T], *, how: str = "measured"
) -> T:
    """What a student is made by, kept in a file: a run that goes on makes the same student, and so do all processes.

    Args:
        write: finds it and writes it; called on the main process where there is no file yet.
        how: it is found, for the error.

    Raises:
        CorruptError: the file is not what was written.
    """
    if accelerator.is_main_process and not file.is_file():
        with atomic_file(file) as partial:
            write(partial)
    accelerator.wait_for_everyone()
    try:
        return read(file)
    except (ValueError, SafetensorError) as error:
        raise CorruptError(f"{file} is corrupt ({error}); delete it and run again: it is {how} anew") from error
