"""Errors for users. Any other exception that is raised is a bug in condistill."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable


class CondistillError(Exception):
    """An error for the user: one line with the value given, the values allowed and the next step."""


class RecipeError(CondistillError):
    """A recipe that cannot be run; the message lists every mistake with its place."""


class CorruptError(CondistillError):
    """A file or directory of a run whose content differs from the content that was written."""


class NonFiniteLossError(CondistillError):
    """A loss that became NaN or infinite; the last good checkpoint is kept."""


_LONGEST_NAME = 100
"""The comparison with valid names takes time that grows with the square of a name's length."""
_REMEDIES = {
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows; use another disk or raise the limit",
    errno.EROFS: "the file system is read-only; choose a path that can be written",
    errno.EACCES: "permission denied; change the permissions or choose another path",
    errno.EPERM: "the system does not permit this; change the permissions or choose another path",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ELOOP: "symbolic links point at each other in a circle; remove one of them",
    errno.EMFILE: "this process has too many open files; raise `ulimit -n`",
    errno.ENFILE: "the system has too many open files; close other programs",
    errno.EIO: "the disk reports an input/output error; check the disk, or use another one",
    errno.ENOENT: "no such file or directory; check the path",
    errno.ENOTDIR: "a part of the path is a file and not a directory; move that file, or choose another path",
    errno.EISDIR: "is a directory where a file belongs; move or rename it, or choose another path",
    errno.EEXIST: "exists already; choose another path",
    errno.EILSEQ: "the file system cannot store this name; choose another one",
    errno.EINVAL: "the system does not accept this path; choose another one",
    errno.ESTALE: "the network file system has lost this file; mount it again",
    errno.ETXTBSY: "another program uses the file; close that program",
    errno.EBUSY: "another program uses the file; close that program",
}
"""What errors of the operating system mean, and what to do."""


def system_code(error: BaseException) -> int | None:
    """Return the error number of the operating system, which some libraries report only in the text; None without."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"\(os error (\d+)\)|\[errno (\d+)\]", str(error), re.IGNORECASE)
    return int(found[1] or found[2]) if found else None


def system_message(error: BaseException) -> str:
    """Return a message of one line for an error of the operating system: the file if it is known, and what to do."""
    code = system_code(error)
    if code is None:
        return (str(error).splitlines() or [type(error).__name__])[0]
    reason = _REMEDIES.get(code) or f"{os.strerror(code).lower()}; check the path and the disk, then run this again"
    if not isinstance(error, OSError):
        return reason
    file = error.filename2 or error.filename  # of a temporary file that is renamed, its final name
    return f"{file}: {reason}" if file else reason


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name.

    It is `; did you mean 'x'?` with the valid name closest to `name`, or the list of valid names if none is close.
    """
    valid = list(valid)
    if len(name) <= _LONGEST_NAME and (close := difflib.get_close_matches(name, valid, n=1)):
        return f"; did you mean {close[0]!r}?"
    return f"; valid names: {', '.join(valid)}"
