"""Keep freed memory in the process.

glibc returns large buffers to the kernel as soon as they are freed. A training step on a CPU allocates the same
buffers again and again, so the kernel must provide new pages each time. Only the command changes this setting: a
library should not change the memory management of the program that imports it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Configure the malloc of glibc to keep freed memory, and return whether that succeeded.

    Nothing is changed on other systems, with other allocators, or if an environment variable starts with `MALLOC_`.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # 32 MiB is the largest threshold that glibc accepts
    settings = ((_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 2047 * _MIB), (_TOP_PAD, 256 * _MIB))
    accepted = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(accepted)


def release_freed_memory() -> None:
    """Return freed memory to the system after work that needed much, such as a training; nothing on other systems."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
