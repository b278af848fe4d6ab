"""Prompts of a pool, drawn from its sources by weight: in constant memory, since a source is a range of the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condistill.config.conditioning import PromptChoiceSettings
from condistill.config.recipe import check_sources
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool


@dataclass(frozen=True)
class SourceMix:
    """S ranges of a pool, and how often each is drawn from."""

    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    shares: NDArray[np.float64]
    """Of all draws, those from a source or from one before it `[S]`, rising to 1."""

    @classmethod
    def of(cls, pool: PromptPool, weights: Mapping[str, float] | None) -> SourceMix:
        """Mix the sources of a pool; without weights, every prompt of the pool is equally likely.

        Args:
            weights: by the names of `pool.sources`.

        Raises:
            CondistillError: the weights are not those of the pool's sources, or one has no prompt of its own.
        """
        if weights is None:
            return cls(np.array([0]), np.array([len(pool)]), np.array([1.0]))
        check_sources(weights, pool.sources)
        ranges = pool.source_ranges()
        if bare := [name for name, mine in ranges.items() if weights[name] and not mine]:
            raise CondistillError(
                f"{bare[0]!r} has no prompt of its own: all are in the files before it; give those the weight, and it 0"
            )
        shares = np.cumsum([weights[name] for name in ranges], dtype=np.float64)
        starts, counts = [mine.start for mine in ranges.values()], [len(mine) for mine in ranges.values()]
        return cls(np.array(starts), np.array(counts), shares / shares[-1])

    def indices(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Places in the pool `[...]`, from numbers in [0, 1) for the source and for the place in it `[..., 2]`."""
        source = np.searchsorted(self.shares, uniform[..., 0], side="right")
        return self.starts[source] + (uniform[..., 1] * self.counts[source]).astype(np.int64)


def check_pool(pool: PromptPool, settings: PromptChoiceSettings | None) -> None:
    """Whether random prompts can be drawn from a pool as the settings say.

    Raises:
        CondistillError: the sources are not those of the weights, or there are fewer prompts than clusters.
    """
    if settings is None:
        return
    SourceMix.of(pool, settings.source_weights)
    if settings.disagreement and len(pool) < settings.clusters:
        raise CondistillError(
            f"distill.conditioning.prompt_choice.clusters is {settings.clusters} and the pool has {len(pool)} "
            "prompts; lower it"
        )
