"""Random prompts of a pool, drawn from its source files by weight.

Each source is a range of indices into the pool, so the memory does not depend on the size of the pool.
"""

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
    """S sources of a pool: their ranges of indices and their probabilities."""

    starts: NDArray[np.int64]
    """Index of the first prompt of each source `[S]`."""
    counts: NDArray[np.int64]
    """Number of prompts of each source `[S]`."""
    cumulative: NDArray[np.float64]
    """Cumulative probability of the sources `[S]`; the last is 1."""

    @classmethod
    def of(cls, pool: PromptPool, weights: Mapping[str, float] | None) -> SourceMix:
        """Return a mix of the sources of a pool; without weights, each prompt of the pool is equally likely.

        Args:
            weights: one weight for each name of `pool.sources`.

        Raises:
            CondistillError: the names are not those of the sources of the pool, or a source with a positive weight has
                no prompts of its own.
        """
        if weights is None:
            return cls(np.array([0]), np.array([len(pool)]), np.array([1.0]))
        check_sources(weights, pool.sources)
        ranges = pool.source_ranges()
        if empty := [name for name, indices in ranges.items() if weights[name] and not indices]:
            raise CondistillError(
                f"{empty[0]!r} has no prompts of its own: the files before it contain all of them; set its weight to 0 "
                "and add the weight to those files"
            )
        cumulative = np.cumsum([weights[name] for name in ranges], dtype=np.float64)
        starts = np.array([indices.start for indices in ranges.values()])
        counts = np.array([len(indices) for indices in ranges.values()])
        return cls(starts, counts, cumulative / cumulative[-1])

    def indices(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return random indices into the pool `[...]`.

        Args:
            uniform: uniform random numbers in [0, 1), `[..., 2]`: the first chooses the source, the second the prompt.
        """
        source = np.searchsorted(self.cumulative, uniform[..., 0], side="right")
        return self.starts[source] + (uniform[..., 1] * self.counts[source]).astype(np.int64)


def check_pool(pool: PromptPool, settings: PromptChoiceSettings | None) -> None:
    """Check that a pool has the sources and the number of prompts that the settings need.

    Raises:
        CondistillError: the weights are not for the sources of the pool, or the pool has fewer prompts than clusters.
    """
    if settings is None:
        return
    SourceMix.of(pool, settings.source_weights)
    if settings.disagreement and len(pool) < settings.clusters:
        raise CondistillError(
            f"distill.conditioning.prompt_choice.clusters is {settings.clusters} and the pool has {len(pool)} "
            "prompts; lower it"
        )
