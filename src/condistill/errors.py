"""What a user is told. Anything else that is raised is a bug of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CondistillError(Exception):
    """Says in one line what was given, what is allowed and what to do next."""


class RecipeError(CondistillError):
    """A recipe that cannot be run; lists every mistake with its place."""


class CorruptError(CondistillError):
    """An artefact on disk is not what was written."""


class NonFiniteLossError(CondistillError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the valid name closest to `name`, or the list of valid names."""
    valid = list(valid)
    if close := difflib.get_close_matches(name, valid, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; valid names: {', '.join(valid)}"
