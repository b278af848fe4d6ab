"""The cache stage: let the teacher generate the latents of the cached prompts."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from condistill.cache.fill import fill_cache, finish_cache
from condistill.cache.latents import LatentCache
from condistill.config.sections import CacheSettings
from condistill.errors import CondistillError
from condistill.prompts import stage as prompts_stage
from condistill.run.context import Run
from condistill.run.stage_directory import StageDir
from condistill.utils.distributed import on_every_process, on_main_process
from condistill.utils.format import byte_size
from condistill.utils.hashing import key_of

NAME = "cache"
_SHARD_SIZE = "cache.shard_size"


def _directory(run: Run) -> StageDir:
    directory = run.stage(NAME, lambda: _inputs(run))
    directory.default_layout = {_SHARD_SIZE: run.recipe.cache.shard_size}
    return directory


def _inputs(run: Run) -> dict[str, Any]:
    settings = run.recipe.cache.model_dump(exclude={"batch_size", "shard_size"})
    return {
        prompts_stage.NAME: prompts_stage.key(run),
        **run.teacher_inputs,
        **{f"cache.{name}": value for name, value in settings.items()},
    }


def key(run: Run) -> str:
    """Return the hash of the prompts, the teacher and the cache settings that change latents."""
    return _directory(run).key


def is_done(run: Run) -> bool:
    """Return whether every shard and the manifest exist."""
    return _directory(run).is_done()


def make(run: Run) -> None:
    """Generate the shards that are missing; every process generates its own.

    Raises:
        CondistillError: the disk is too small, or latents are not finite.
    """
    directory, accelerator = _directory(run), run.accelerator
    prompts, seed = prompts_stage.open(run).cached, run.recipe.seed

    def begin() -> None:
        for path in directory.damaged():
            path.unlink(missing_ok=True)
        directory.begin()
        check_space(directory.path, len(prompts), run.family.latent_shape, run.recipe.cache.dtype)

    def finish() -> None:
        teacher = key_of(run.teacher_inputs)
        settings, hash_of = _settings(directory, run), run.directory.hashes.of
        finish_cache(directory.path, run.family, settings, seed=seed, teacher=teacher, hash_of=hash_of)
        directory.finish()

    on_main_process(accelerator, begin)
    part = (accelerator.process_index, accelerator.num_processes)
    share = len(prompts) // accelerator.num_processes

    def fill() -> None:
        with run.progress(NAME, share, unit="images", quiet=part[0] > 0) as advance:
            fill_cache(
                directory.path,
                run.family,
                prompts,
                _settings(directory, run),
                seed=seed,
                part=part,
                on_images=advance,
                on_found=partial(advance, found=True),
                on_damaged=lambda path: run.say(f"{path} is damaged; it is made again", everywhere=True),
            )

    on_every_process(accelerator, fill)
    on_main_process(accelerator, finish)


def _settings(directory: StageDir, run: Run) -> CacheSettings:
    """Return the settings of the cache, with the size of the shards that it was begun with."""
    return run.recipe.cache.model_copy(update={"shard_size": directory.layout[_SHARD_SIZE]})


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
            f"the cache needs {byte_size(needed)} more in {folder} and {byte_size(free)} are free; free some "
            "space, choose another --out, or lower cache.size"
        )
