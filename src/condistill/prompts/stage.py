"""The prompts stage: build the text pool, split it into seen and unseen, and choose the prompts to cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condistill.config.sections import PromptSettings
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool, PromptSequence
from condistill.prompts.readers import is_tabular
from condistill.prompts.sources import check_pool
from condistill.prompts.split import Prompts, has_word, split_indices
from condistill.run.context import Run
from condistill.run.directory import StageDir
from condistill.utils.hashing import hash_file
from condistill.utils.randomness import Stream, generator

NAME = "prompts"
_POOL, _CACHED, _UNSEEN, _CANDIDATES = "pool.arrow", "cached.arrow", "unseen.arrow", "candidates.arrow"


def _directory(run: Run) -> StageDir:
    settings = run.recipe.prompts
    hashes = run.once(
        "prompt file hashes",
        lambda: {name: hash_file(Path(name)) for name in settings.every_file if Path(name).is_file()},
    )
    return run.stage(NAME, settings.model_dump(), hashes, run.recipe.seed, run.recipe.cache.size)


def key(run: Run) -> str:
    """Return the hash of the prompt settings, the prompt files, the seed and the cache's size."""
    return _directory(run).key


def is_done(run: Run) -> bool:
    """Return whether the pool, the cached prompts and the unseen prompts are built."""
    files = [_POOL]
    files += [_CACHED] if run.recipe.cache.size else []
    files += [_UNSEEN] if run.recipe.prompts.unseen_files else []
    return _directory(run).is_done(*files)


def make(run: Run) -> None:
    """Build the pool, and choose the prompts to cache.

    Raises:
        CondistillError: fewer prompts may be cached than `cache.size`.
    """
    run.fill(_directory(run), lambda path: _build(run, path))


def open(run: Run) -> Prompts:
    """Return the prompts of a run, and print their counts the first time.

    Raises:
        CondistillError: no prompt has any of the unseen words, or the pool does not fit `prompt_choice`.
    """
    return run.once(NAME, lambda: _open(run))


def _open(run: Run) -> Prompts:
    recipe, folder = run.recipe, _directory(run).path
    settings = recipe.prompts
    pool = PromptPool.open(folder / _POOL)
    unseen_prompts = PromptPool.open(folder / _UNSEEN) if settings.unseen_files else None
    seen, unseen = split_indices(pool, unseen_words=settings.unseen_words, unseen_prompts=unseen_prompts)
    cached: PromptSequence = PromptPool.open(folder / _CACHED) if recipe.cache.size else []
    prompts = Prompts(pool, cached, seen, unseen)
    _check_words(run, prompts)
    for name in recipe.variants:
        check_pool(pool, recipe.variant(name)[1].conditioning.prompt_choice)
    run.say(
        f"prompts: {len(pool):,} in the pool ({pool.counts.duplicates:,} duplicates and {pool.counts.empty:,} "
        f"empty lines dropped), {len(unseen):,} of them never cached; {len(cached):,} to cache"
    )
    if recipe.cache_is_idle:
        run.say("warning: no student learns from a cached latent; set cache.size: 0 to skip the cache", style="yellow")
    return prompts


def _check_words(run: Run, prompts: Prompts) -> None:
    """Warn about each of `unseen_words` that no prompt has; if that is every word, refuse."""
    words = run.recipe.prompts.unseen_words
    idle = [word for word in words if not any(has_word(prompts.pool[i], (word,)) for i in prompts.unseen.tolist())]
    if not idle:
        return
    message = f"no prompt of the pool has {' or '.join(map(repr, idle))} of prompts.unseen_words"
    if len(idle) == len(words):
        raise CondistillError(f"{message}, so nothing would be held out; correct the words or leave them out")
    run.say(f"warning: {message}", style="yellow")


def _build(run: Run, folder: Path) -> None:
    settings, size = run.recipe.prompts, run.recipe.cache.size
    pool = PromptPool.build(settings.every_file, folder / _POOL, column=settings.column)
    unseen_prompts = None
    if settings.unseen_files:
        unseen_prompts = _build_part(settings, settings.unseen_files, folder / _UNSEEN)
    if not size:
        return
    source = _build_part(settings, settings.cached_files, folder / _CANDIDATES) if settings.cached_files else pool
    seen, _ = split_indices(source, unseen_words=settings.unseen_words, unseen_prompts=unseen_prompts)
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
