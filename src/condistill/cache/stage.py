"""The cache stage: let the teacher generate the latents of the cached prompts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from condistill.cache.fill import fill_cache, finish_cache
from condistill.cache.latents import MANIFEST_NAME, LatentCache, shard_name, verify_remaining_shards
from condistill.errors import CondistillError
from condistill.prompts import stage as prompts_stage
from condistill.run.context import Run
from condistill.run.directory import StageDir
from condistill.utils.distributed import on_main_process
from condistill.utils.progress import progress_bar

NAME = "cache"


def _directory(run: Run) -> StageDir:
    settings = run.recipe.cache.model_dump(exclude={"batch_size"})
    return run.stage(NAME, prompts_stage.key(run), run.teacher_key, settings, run.recipe.teacher.dtype)


def key(run: Run) -> str:
    """Return the hash of the prompts, the teacher and the cache settings that change latents."""
    return _directory(run).key


def is_done(run: Run) -> bool:
    """Return whether every shard and the manifest exist."""
    settings = run.recipe.cache
    shards = [shard_name(i) for i in range(-(-settings.size // settings.shard_size))]
    return _directory(run).is_done(MANIFEST_NAME, *shards)


def make(run: Run) -> None:
    """Generate the shards that are missing; every process generates its own.

    Raises:
        CondistillError: the disk is too small, or latents are not finite.
    """
    directory, settings, accelerator = _directory(run), run.recipe.cache, run.accelerator
    prompts, seed = prompts_stage.open(run).cached, run.recipe.seed

    def begin() -> None:
        verify_remaining_shards(directory.begin())
        check_space(directory.path, len(prompts), run.family.latent_shape, settings.dtype)

    def finish() -> None:
        finish_cache(directory.path, run.family, settings, seed=seed, teacher=run.teacher_key)
        directory.finish()

    on_main_process(accelerator, begin)
    part = (accelerator.process_index, accelerator.num_processes)
    share = len(prompts) // accelerator.num_processes
    with progress_bar(run.console, NAME, share, unit="images", quiet=part[0] > 0) as advance:
        fill_cache(directory.path, run.family, prompts, settings, seed=seed, part=part, on_images=advance)
    accelerator.wait_for_everyone()
    on_main_process(accelerator, finish)


def open(run: Run) -> LatentCache:
    """Return the cached latents of a run, and print their count the first time."""
    return run.once(NAME, lambda: _open(run))


def _open(run: Run) -> LatentCache:
    cache = LatentCache.open(_directory(run).path)
    run.say(f"cache: {len(cache):,} latents of {'x'.join(map(str, cache.latent_shape))}")
    return cache


def check_space(folder: Path, images: int, latent_shape: tuple[int, ...], dtype: str) -> None:
    """Check that the latents that are still missing fit on the disk.

    Raises:
        CondistillError: they do not; nothing was generated yet.
    """
    needed = images * int(np.prod(latent_shape)) * np.dtype(dtype).itemsize
    needed -= sum(file.stat().st_size for file in folder.glob("shard-*.arrow"))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CondistillError(
            f"the cache needs {needed / 2**30:,.2f} GiB more in {folder} and {free / 2**30:,.2f} GiB are free; free "
            "some space, choose another --out, or lower cache.size"
        )
