"""Paths that users give: `~` and `~NAME` stand for home directories."""

from __future__ import annotations

import os
from pathlib import Path

from condistill.errors import CondistillError


def expand_home(name: str | Path, folder: Path | None = None) -> Path:
    """Return a path with the home directory in place of a leading `~` or `~NAME`.

    A path that exists as it is, such as `~draft.txt`, stays as it is.

    Args:
        folder: where a relative path starts; by default the working directory.

    Raises:
        CondistillError: there is no user of this name.
    """
    path = Path(name)
    first = path.parts[0] if path.parts else ""
    if not first.startswith("~") or (first != "~" and os.path.lexists((folder or Path()) / path)):
        return path
    try:
        expanded = os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises several kinds of errors
    except ValueError:  # a NUL in the name
        expanded = first
    if expanded.startswith("~"):
        raise CondistillError(
            f"{str(path)!r}: there is no home directory for {first!r}; write the whole path, or `~/` for your own"
        )
    return Path(expanded)


def resolve_path(name: str | Path, folder: Path | None = None) -> Path:
    """Return an absolute path; see `expand_home`."""
    path = (folder or Path()) / expand_home(name, folder)
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name that is too long, or links in a circle
        return path.absolute()
