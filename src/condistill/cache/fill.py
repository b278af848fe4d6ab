"""Fill a cache: generate latents for prompts with the teacher, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.cache.latents import MANIFEST_NAME, LatentCache, is_shard, shard_name, write_manifest, write_shard
from condistill.config.sections import CacheSettings
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptSequence
from condistill.teachers.family import Family
from condistill.utils.atomic import partial_path, remove
from condistill.utils.hashing import hash_file
from condistill.utils.randomness import Stream, image_noise, image_seed


def fill_cache(
    directory: Path,
    family: Family,
    prompts: PromptSequence,
    settings: CacheSettings,
    *,
    seed: int,
    part: tuple[int, int] = (0, 1),
    on_images: Callable[[int], None] = lambda _: None,
    on_found: Callable[[int], None] | None = None,
    on_damaged: Callable[[Path], None] = lambda _: None,
) -> None:
    """Generate the shards that this process owns and that are missing or damaged; complete shards are kept.

    The starting noise of image i depends only on (seed, i).

    Args:
        prompts: one per image.
        part: (process index, number of processes P); a process owns every P-th shard.
        on_images: called with the number of images that were generated since the last call.
        on_found: called with the number of images of each complete shard; None: `on_images` is.
        on_damaged: called with the path of a damaged shard before it is generated again.

    Raises:
        CondistillError: the teacher generated latents that are not finite.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = range(0, len(prompts), settings.shard_size)
    process, processes = part
    for index in list(range(len(shards)))[process::processes]:
        path = directory / shard_name(index)
        indices = range(shards[index], min(shards[index] + settings.shard_size, len(prompts)))
        if path.exists():
            if is_shard(path, [prompts[i] for i in indices]):
                (on_found or on_images)(len(indices))
                continue
            on_damaged(path)
            remove(path)
        remove(partial_path(path))
        latents = []
        for start in range(0, len(indices), settings.batch_size):
            batch = indices[start : start + settings.batch_size]
            latents.append(_sample_batch(family, prompts, batch, settings, seed))
            on_images(len(batch))
        write_shard(path, np.concatenate(latents), [prompts[i] for i in indices])


def finish_cache(
    directory: Path,
    family: Family,
    settings: CacheSettings,
    *,
    seed: int,
    teacher: str,
    hash_of: Callable[[Path], str] = hash_file,
) -> LatentCache:
    """Write the manifest once all shards are complete, and return the cache.

    Args:
        teacher: the hash of the teacher, which the manifest records.
        hash_of: returns the SHA-256 of a file.
    """
    origin = {
        "teacher": teacher,
        "family": family.name,
        "sampler": type(family.pipeline.scheduler).__name__,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "seed": seed,
        "dtype": settings.dtype,
        "latent_shape": family.latent_shape,
    }
    remove(directory / MANIFEST_NAME)
    write_manifest(directory, shard_size=settings.shard_size, origin=origin, hash_of=hash_of)
    return LatentCache.open(directory)


def _sample_batch(
    family: Family,
    prompts: PromptSequence,
    indices: Sequence[int],
    settings: CacheSettings,
    seed: int,
) -> NDArray[Any]:
    """Return the latents of several images `[B, C, h, w]` in the dtype of the cache."""
    noise = np.stack([image_noise(seed, Stream.CACHE_NOISE, i, family.latent_shape) for i in indices])
    latents = family.sample(
        family.denoiser,
        [prompts[i] for i in indices],
        torch.from_numpy(noise),
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        seeds=[image_seed(seed, Stream.CACHE_NOISE, i) for i in indices],
    )
    dtype = np.dtype(settings.dtype)
    with np.errstate(over="ignore"):
        stored: NDArray[Any] = latents.cpu().numpy().astype(dtype)
    if not np.isfinite(stored).all():
        setting = "cache.dtype" if torch.isfinite(latents).all() else "teacher.dtype"
        raise CondistillError(
            f"the teacher generated latents that are not finite for images {indices[0]} to {indices[-1]}, computed in "
            f"{family.dtype} and stored in {dtype}; try {setting}: float32"
        )
    return stored
