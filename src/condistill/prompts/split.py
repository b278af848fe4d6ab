"""The split of a pool: seen prompts may be cached; unseen prompts never are, and are only used as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from condistill.prompts.pool import PromptPool, PromptSequence, prompt_digest
from condistill.prompts.words import has_word


class SeenSplit(NamedTuple):
    """Ascending indices into a pool; each prompt is either seen or unseen."""

    seen: NDArray[np.int64]
    unseen: NDArray[np.int64]

    @classmethod
    def of(cls, is_unseen: NDArray[np.bool_]) -> SeenSplit:
        """Return the split for a flag per prompt of the pool `[N]`."""
        return cls(np.flatnonzero(~is_unseen), np.flatnonzero(is_unseen))

    def is_unseen(self) -> NDArray[np.bool_]:
        """Return a flag per prompt of the pool `[N]`, from which `of` makes the split again."""
        flags = np.zeros(len(self.seen) + len(self.unseen), dtype=np.bool_)
        flags[self.unseen] = True
        return flags


def split_indices(
    pool: PromptPool, *, unseen_words: Sequence[str] = (), unseen_prompts: PromptPool | None = None
) -> SeenSplit:
    """Split a pool into seen and unseen prompts.

    Args:
        unseen_words: a prompt with one of these words is unseen; see `has_word`.
        unseen_prompts: a prompt in this pool is unseen.

    Raises:
        CondistillError: a word is empty.
    """
    held_out = {prompt_digest(prompt) for prompt in unseen_prompts or ()}
    unseen = np.fromiter(
        (has_word(prompt, unseen_words) or (bool(held_out) and prompt_digest(prompt) in held_out) for prompt in pool),
        dtype=bool,
        count=len(pool),
    )
    return SeenSplit.of(unseen)


@dataclass(frozen=True)
class Prompts:
    """The result of the prompts stage: the pool, the cached prompts, and the seen and unseen indices into the pool."""

    pool: PromptPool
    cached: PromptSequence
    seen: np.ndarray[Any, np.dtype[np.int64]]
    unseen: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def splits(self) -> list[str]:
        """The names of the splits to evaluate: `seen` and `unseen`, or only `all` if no prompt is unseen."""
        return ["seen", "unseen"] if len(self.unseen) else ["all"]

    def choose(self, split: str, n: int, rng: np.random.Generator) -> list[str]:
        """Return `n` random, distinct prompts of a split, or all of them if the split has fewer."""
        return self.pool.take(self.choose_indices(split, n, rng))

    def choose_indices(self, split: str, n: int, rng: np.random.Generator) -> list[int]:
        """Return the indices into the pool of the prompts that `choose` returns."""
        indices = {"seen": self.seen, "unseen": self.unseen, "all": np.arange(len(self.pool))}[split]
        chosen: list[int] = rng.choice(indices, min(n, len(indices)), replace=False).tolist()
        return chosen
