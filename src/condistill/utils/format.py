"""Format numbers for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DECIMAL_UNITS = ("", " K", " M", " B", " T")
_SI_UNITS = ("", " K", " M", " G", " T")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_DURATIONS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def percent(share: float, decimals: int = 0) -> str:
    """Return a fraction as a percentage: `67 %` for `0.674`; a share that would read 0 has one significant digit."""
    text = f"{100 * share:,.{decimals}f}"
    return f"{significant(100 * share, 1) if share and not float(text.replace(',', '')) else text} %"


def significant(number: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits and no exponent: `12.3`, `0.0712`, `860`, `652,000`."""
    if number == 0 or not math.isfinite(number):
        return f"{number:.0f}"
    decimals = digits - 1 - math.floor(math.log10(abs(number)))
    rounded = round(number, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > digits - 1 - decimals:  # 9.996 is 10.0, not 10.00
        decimals -= 1
    return f"{rounded:,.{max(decimals, 0)}f}"


def byte_size(count: float) -> str:
    """Return a number of bytes, of memory or on disk, in units of 1024: `512 B`, `7.21 MiB`, `2.06 GiB`."""
    power = 0
    while abs(count) >= 999.5 and power < len(_BYTE_UNITS) - 1:
        count /= 1024
        power += 1
    return f"{significant(count)} {_BYTE_UNITS[power]}"


def duration(seconds: float, digits: int = 3) -> str:
    """Return a time in a unit of its size: `12.3 ms`, `100 s`, `2.17 min`, `3.50 h`, `27,200 days`.

    A unit above the second is used from two of it on.
    """
    for length, unit in _DURATIONS:
        least = (2 if length > 1 else 1) * length
        if seconds >= least * (1 - 0.5 * 10**-digits) or length == _DURATIONS[-1][0]:
            return f"{significant(seconds / length, digits)} {unit}" if seconds else "0 s"
    raise AssertionError("the last unit takes any time")


def quantity(number: float, units: Sequence[str] = _DECIMAL_UNITS) -> str:
    """Return a number with a unit for thousands, millions and so on: `6.98 M` for `6978372`."""
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number /= 1000
        power += 1
    text = f"{number:.0f}" if power == 0 and float(number).is_integer() else significant(number)
    return text + units[power]


def si_quantity(number: float) -> str:
    """Return a number with an SI prefix, as for multiply-accumulates: `36.0 G`."""
    return quantity(number, _SI_UNITS)


def times_as_fast(relative_time: float) -> str:
    """Return the speed for a fraction of the time of the teacher: `2.00× as fast` for `0.5`."""
    return f"{1 / relative_time:.2f}× as fast" if relative_time > 0 else ""


def article(noun: str) -> str:
    """Return `a` or `an`, as it is spoken before a noun: `an FID`, `an Inception score`, `a KID`."""
    is_spelled = noun[:2].isupper() and noun[:3] not in ("CLI", "KID")
    vowels = "AEFHILMNORSX" if is_spelled else "AEIOU"
    return "an" if noun[:1].upper() in tuple(vowels) else "a"
