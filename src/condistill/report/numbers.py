"""Reading figures out of the metrics, and writing them for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

TEACHER = "teacher"
SPLITS = ("seen", "unseen", "all")
DECIMAL_UNITS = ("", " K", " M", " B", " T")
SI_UNITS = ("", " K", " M", " G", " T")
BYTE_UNITS = (" B", " kB", " MB", " GB", " TB")


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


def percent(share: float) -> str:
    """`0.674` is `67 %`."""
    return f"{100 * share:.0f} %"


def significant(number: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent: `12.3`, `0.0712`, `860`."""
    if number == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{round(number, decimals):.{max(decimals, 0)}f}"


def quantity(number: float, units: Sequence[str] = DECIMAL_UNITS) -> str:
    """`6978372` is `6.98 M`."""
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number /= 1000
        power += 1
    text = f"{number:.0f}" if power == 0 and float(number).is_integer() else significant(number)
    return text + units[power]


def times_as_fast(relative_time: float) -> str:
    """Share of the teacher's time as a speed: `0.5` is `2.00× as fast`."""
    return f"{1 / relative_time:.2f}× as fast" if relative_time > 0 else ""
