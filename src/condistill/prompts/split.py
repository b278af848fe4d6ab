"""Which prompts may be cached (seen) and which the teacher is asked about in distillation only (unseen)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool, Texts, prompt_digest


class SeenSplit(NamedTuple):
    """Indices into a pool, ascending: every prompt is in one of the two."""

    seen: NDArray[np.int64]
    unseen: NDArray[np.int64]


def has_word(prompt: str, words: Sequence[str]) -> bool:
    """Whether a prompt has one of these words or phrases: whole, in any case, also with a plural s or es.

    Raises:
        CondistillError: a word is blank.
    """
    return bool(words) and _pattern(tuple(words)).search(prompt) is not None


@lru_cache(maxsize=32)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    if blank := [word for word in words if not word.strip()]:
        raise CondistillError(f"{blank[0]!r} is not a word that a prompt can have; remove it")
    phrases = (r"\s+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?:s|es)?(?!\w)", re.IGNORECASE)


def split_indices(
    pool: PromptPool, *, unseen_words: Sequence[str] = (), unseen_prompts: PromptPool | None = None
) -> SeenSplit:
    """Split a pool: unseen is what has one of the words or is in `unseen_prompts`.

    Raises:
        CondistillError: a word is blank.
    """
    held_out = {prompt_digest(prompt) for prompt in unseen_prompts or ()}
    unseen = np.fromiter(
        (has_word(prompt, unseen_words) or (bool(held_out) and prompt_digest(prompt) in held_out) for prompt in pool),
        dtype=bool,
        count=len(pool),
    )
    return SeenSplit(np.flatnonzero(~unseen), np.flatnonzero(unseen))


@dataclass(frozen=True)
class Prompts:
    """What the first stage leaves: the pool, what may be cached, and what is cached."""

    pool: PromptPool
    cached: Texts
    seen: np.ndarray[Any, np.dtype[np.int64]]
    unseen: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def splits(self) -> list[str]:
        """`seen` and `unseen`, or neither where nothing is held out."""
        return ["seen", "unseen"] if len(self.unseen) else ["all"]

    def choose(self, split: str, n: int, rng: np.random.Generator) -> list[str]:
        """Up to n distinct prompts of a split."""
        indices = {"seen": self.seen, "unseen": self.unseen, "all": np.arange(len(self.pool))}[split]
        return self.pool.take(rng.choice(indices, min(n, len(indices)), replace=False).tolist())
