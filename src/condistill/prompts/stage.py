"""The prompts stage: build the text pool, split it into seen and unseen, and choose the prompts to cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condistill.config.recipe import Recipe
from condistill.config.sections import PromptSettings
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool, PromptSequence
from condistill.prompts.readers import describe_source, is_tabular
from condistill.prompts.sources import check_pool
from condistill.prompts.split import Prompts, SeenSplit, split_indices
from condistill.prompts.words import has_word
from condistill.run.context import Run
from condistill.run.stage_directory import StageDir
from condistill.utils.atomic import atomic_file
from condistill.utils.randomness import Stream, generator

NAME = "prompts"
_POOL, _CACHED, _UNSEEN, _CANDIDATES = "pool.arrow", "cached.arrow", "unseen.arrow", "candidates.arrow"
_SPLIT = "is_unseen.npy"


def _directory(run: Run) -> StageDir:
    return run.stage(NAME, lambda: _inputs(run))


def _inputs(run: Run) -> dict[str, Any]:
    settings, hashes = run.recipe.prompts, run.directory.hashes
    file_lists = {"files": settings.files, "cached_files": settings.cached_files, "unseen_files": settings.unseen_files}
    inputs: dict[str, Any] = {
        "seed": run.recipe.seed,
        "cache.size": run.recipe.cache.size,
        **{f"prompts.{name}": [Path(file).name for file in files] for name, files in file_lists.items()},
        **{f"prompts.{name}": value for name, value in settings.model_dump(exclude={*file_lists}).items()},
    }
    for name, files in file_lists.items():
        for number, file in enumerate(files):
            if Path(file).is_file():  # else the captions of the miniature
                inputs[f"prompts.{name}[{number}] file {Path(file).name}"] = hashes.of(Path(file))
    return inputs


def key(run: Run) -> str:
    """Return the hash of the prompt settings, the prompt files, the seed and the cache's size."""
    return _directory(run).key


def is_done(run: Run) -> bool:
    """Return whether the pool, its split, the cached prompts and the unseen prompts are built."""
    return _directory(run).is_done()


def make(run: Run) -> None:
    """Build the pool, and choose the prompts to cache.

    Raises:
        CondistillError: fewer prompts may be cached than `cache.size`, or no prompt has any of the unseen words.
    """
    run.fill(_directory(run), lambda path: _build(run, path))


def open(run: Run) -> Prompts:
    """Return the prompts of a run, and print their counts the first time.

    Raises:
        CondistillError: the pool does not fit `prompt_choice`.
    """
    return run.once(NAME, lambda: _open(run))


def _open(run: Run) -> Prompts:
    recipe, folder = run.recipe, _directory(run).path
    pool = PromptPool.open(folder / _POOL)
    is_unseen = np.load(folder / _SPLIT, mmap_mode="r", allow_pickle=False)
    cached: PromptSequence = PromptPool.open(folder / _CACHED) if recipe.cache.size else []
    seen, unseen = SeenSplit.of(is_unseen)
    prompts = Prompts(pool, cached, seen, unseen)
    for name in recipe.variants:
        check_pool(pool, recipe.variant(name)[1].conditioning.prompt_choice)
    counts = pool.counts
    cleaned = f"; control characters removed from {counts.cleaned:,}" if counts.cleaned else ""
    run.say(
        f"prompts: {len(pool):,} in the pool ({counts.duplicates:,} duplicates and {counts.empty:,} empty lines "
        f"dropped{cleaned}), {len(unseen):,} of them never cached; {len(cached):,} to cache"
    )
    if len(cached) == len(pool) and _replaces_prompts(recipe):
        run.say(
            "warning: every prompt of the pool is cached, so random conditioning has no others to choose from; give "
            "more prompts or lower cache.size",
            style="yellow",
        )
    return prompts


def _replaces_prompts(recipe: Recipe) -> bool:
    """Return whether a variant re-pairs cached latents with random prompts."""
    settings = [recipe.variant(name)[1] for name in recipe.variants]
    return any(each.uses_cache and each.conditioning.probability.replaces_prompts for each in settings)


def _check_words(run: Run, pool: PromptPool, unseen: NDArray[np.int64]) -> None:
    """Warn about each of `unseen_words` that no prompt has; if that is every word, refuse."""
    words = run.recipe.prompts.unseen_words
    idle = [word for word in words if not any(has_word(pool[i], (word,)) for i in unseen.tolist())]
    if not idle:
        return
    message = f"no prompt of the pool has {' or '.join(map(repr, idle))} of prompts.unseen_words"
    if len(idle) == len(words):
        raise CondistillError(f"{message}, so nothing would be held out; correct the words or leave them out")
    run.say(f"warning: {message}", style="yellow")


def _build(run: Run, folder: Path) -> None:
    settings, size = run.recipe.prompts, run.recipe.cache.size
    for name in dict.fromkeys(settings.every_file):
        run.say(f"prompts of {describe_source(name, column=settings.column)}")
    pool = PromptPool.build(settings.every_file, folder / _POOL, column=settings.column)
    unseen_prompts = None
    if settings.unseen_files:
        unseen_prompts = _build_part(settings, settings.unseen_files, folder / _UNSEEN)
    split = split_indices(pool, unseen_words=settings.unseen_words, unseen_prompts=unseen_prompts)
    _check_words(run, pool, split.unseen)
    with atomic_file(folder / _SPLIT) as partial, partial.open("wb") as file:
        np.save(file, split.is_unseen(), allow_pickle=False)
    if not size:
        return
    source, seen = pool, split.seen
    if settings.cached_files:
        source = _build_part(settings, settings.cached_files, folder / _CANDIDATES)
        seen = split_indices(source, unseen_words=settings.unseen_words, unseen_prompts=unseen_prompts).seen
    if len(seen) < size:
        raise CondistillError(
            f"cache.size is {size:,} and only {len(seen):,} prompts may be cached; lower cache.size or give more"
        )
    rng = generator(run.recipe.seed, Stream.CACHE_PROMPTS)
    chosen = rng.choice(seen, size, replace=False).tolist()
    PromptPool.from_prompts(source.take(chosen), folder / _CACHED)


def _build_part(settings: PromptSettings, files: Sequence[str], out: Path) -> PromptPool:
    """Build a pool of some of the files; the column is passed on where one of them has columns."""
    return PromptPool.build(files, out, column=settings.column if any(map(is_tabular, files)) else None)
