"""Format numbers for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

DECIMAL_UNITS = ("", " K", " M", " B", " T")
SI_UNITS = ("", " K", " M", " G", " T")
BYTE_UNITS = (" B", " kB", " MB", " GB", " TB")


def percent(share: float) -> str:
    """Return a fraction as a percentage: `67 %` for `0.674`."""
    return f"{100 * share:.0f} %"


def significant(number: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits and no exponent: `12.3`, `0.0712`, `860`."""
    if number == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{round(number, decimals):.{max(decimals, 0)}f}"


def quantity(number: float, units: Sequence[str] = DECIMAL_UNITS) -> str:
    """Return a number with a unit for thousands, millions and so on: `6.98 M` for `6978372`."""
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number /= 1000
        power += 1
    text = f"{number:.0f}" if power == 0 and float(number).is_integer() else significant(number)
    return text + units[power]


def times_as_fast(relative_time: float) -> str:
    """Return the speed for a fraction of the time of the teacher: `2.00× as fast` for `0.5`."""
    return f"{1 / relative_time:.2f}× as fast" if relative_time > 0 else ""
