"""The scores that choose what a student keeps of its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of a teacher's channels and layers, higher for those to keep; None for a score that was not measured."""

    channel_importance: Mapping[str, Tensor] | None = None
    """Of the channels that each layer writes, `[C]` by module path. A width keeps the highest; without it, those whose
    weights have the largest norm."""
    layer_scores: Mapping[str, Sequence[float]] | None = None
    """Block influence of each layer, by list of layers. A depth keeps the highest; without it, layers spread evenly."""
