"""Errors for users. Any other exception that is raised is a bug in condistill."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CondistillError(Exception):
    """An error for the user: one line with the value given, the values allowed and the next step."""


class RecipeError(CondistillError):
    """A recipe that cannot be run; the message lists every mistake with its place."""


class CorruptError(CondistillError):
    """A file or directory of a run whose content differs from the content that was written."""


class NonFiniteLossError(CondistillError):
    """A loss that became NaN or infinite; the last good checkpoint is kept."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name.

    It is `; did you mean 'x'?` with the valid name closest to `name`, or the list of valid names if none is close.
    """
    valid = list(valid)
    if close := difflib.get_close_matches(name, valid, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; valid names: {', '.join(valid)}"
