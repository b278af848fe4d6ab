"""A budget of time, as users write it: `30m`, `2h`, `48h`, `7d`, `1w`."""

from __future__ import annotations

import re

from condistill.errors import CondistillError
from condistill.utils.text import shorten

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = 520 * _SECONDS["w"]


def parse_budget(text: str) -> float:
    """Return the seconds of a budget.

    Raises:
        CondistillError: it is no number above 0 with a unit, or more than ten years.
    """
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([mhdw])\s*", text, re.IGNORECASE | re.ASCII)
    if found is None:
        raise CondistillError(
            f"--budget is {shorten(repr(text), 60)}; give a number and a unit, m (minutes), h, d or w: 30m, 2h, 48h, "
            "7d, 1w"
        )
    seconds = float(found[1]) * _SECONDS[found[2].lower()]
    if not 0 < seconds <= _LONGEST:
        raise CondistillError(f"--budget is {text.strip()}; it must be above 0 and at most 520w, ten years")
    return seconds
