"""What a teacher's layers are judged by: the states that its student will learn from, with their own prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condistill.atomic import write_text
from condistill.cache.latents import LatentCache
from condistill.randomness import Stream, generator
from condistill.students.depth import block_influence
from condistill.teachers.family import Condition, Family

SCORES_NAME = "layer_scores.json"
SAMPLES = 64
_BATCH = 8


def cached_states(
    family: Family,
    cache: LatentCache,
    *,
    seed: int,
    samples: int = SAMPLES,
    guidance_range: tuple[float, float] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Condition]]:
    """Cached latents, each noised to a level of its own: (x_t `[B, C, h, w]`, timesteps `[B]`, condition).

    The levels are stratified: each is uniform in its share of all of them.

    Args:
        samples: how many in all; every latent at most once.
        guidance_range: of scales, for denoisers that are told one.
    """
    rng = generator(seed, Stream.EVIDENCE)
    samples = min(samples, len(cache))
    chosen = rng.choice(len(cache), samples, replace=False)
    uniform = torch.from_numpy((np.arange(samples) + rng.random(samples)) / samples)
    places = torch.from_numpy(rng.random(samples))
    for first in range(0, samples, _BATCH):
        rows = slice(first, first + _BATCH)
        latents, prompts = cache.take(chosen[rows].tolist())
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
        timesteps = family.timesteps(uniform[rows]).to(family.device)
        x_t = family.add_noise(torch.from_numpy(latents).to(family.device), noise.to(family.device), timesteps)
        condition = family.encode(prompts)
        if guidance_range:
            low, high = guidance_range
            condition = condition.with_guidance_scale(low + (high - low) * places[rows])
        yield x_t, timesteps, condition


def layer_scores(
    family: Family,
    cache: LatentCache,
    directory: Path,
    accelerator: Any,
    *,
    seed: int,
    guidance_range: tuple[float, float] | None = None,
) -> dict[str, list[float]] | None:
    """The block influence of the teacher's layers, kept in `directory`: a run that goes on makes the same student.

    None where nothing is cached. The main process measures, so that all processes make the same student.
    """
    if not len(cache):
        return None
    file = directory / SCORES_NAME
    if accelerator.is_main_process and not file.is_file():
        scores = block_influence(family, cached_states(family, cache, seed=seed, guidance_range=guidance_range))
        write_text(file, json.dumps(scores, indent=2) + "\n")
    accelerator.wait_for_everyone()
    kept: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8"))
    return kept
