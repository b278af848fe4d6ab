"""Keep freed memory in the process.

glibc gives large buffers back to the kernel as soon as they are freed, and a training step on a CPU asks for the same
buffers again and again, each time as fresh pages. Only the command does this; a library has no business with the
memory of the program that imports it.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to hold on to what is freed; whether it listened.

    Other allocators, other systems and whoever set MALLOC_ variables are left alone.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # 32 MiB is the largest threshold that glibc takes
    settings = ((_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 2047 * _MIB), (_TOP_PAD, 256 * _MIB))
    listened = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(listened)
