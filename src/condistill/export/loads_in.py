"""Where a pipeline loads, besides diffusers: what the exporters' checks say, for plans and model cards."""

from __future__ import annotations

from dataclasses import dataclass

from condistill.export.exporter import EXPORTERS
from condistill.export.source import Shape


@dataclass(frozen=True)
class LoadsIn:
    """Whether a program loads a pipeline once it is exported."""

    application: str
    loads: bool
    reason: str
    """Why not; or how it is exported."""
    source: str
    """Where the facts are from, and of when."""


def loads_in(shape: Shape) -> tuple[LoadsIn, ...]:
    """Return what is known about each program whose loader has limits on shapes, in the order of the formats."""
    found = []
    for exporter in (each for each in EXPORTERS.values() if each.sources):
        reasons = exporter.check(shape)
        reason = "; ".join(reasons) or f"after `condistill export --to {exporter.name}`"
        found.append(LoadsIn(exporter.title, not reasons, reason, exporter.sources))
    return tuple(found)
