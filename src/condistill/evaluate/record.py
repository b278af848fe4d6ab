"""Reading figures out of the metrics, and writing them for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from condistill.config.recipe import SPLITS, TEACHER


def finite(number: Any) -> float | None:
    """The number, or nothing where there is none: missing, null, NaN, infinite."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return None
    return float(number)


def look(tree: Any, *keys: str) -> float | None:
    """The finite number at a place of nested mappings, if there is one."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return finite(tree)


def models(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was measured of each model, the teacher first."""
    found = {str(name): model for name, model in metrics.get("models", {}).items()}
    return {name: found[name] for name in sorted(found, key=lambda name: name != TEACHER)}


def students(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the students, in their order."""
    return [name for name in models(metrics) if name != TEACHER]


def splits(metrics: Mapping[str, Any]) -> list[str]:
    """The splits that some model was measured on."""
    return [split for split in SPLITS if any(model.get(split) for model in models(metrics).values())]


def ratio(metrics: Mapping[str, Any], name: str, *place: str) -> float | None:
    """A model's figure as a share of the teacher's."""
    mine = look(metrics, "models", name, *place)
    teacher = look(metrics, "models", TEACHER, *place)
    return mine / teacher if mine is not None and teacher else None
