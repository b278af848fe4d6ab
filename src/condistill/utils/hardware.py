"""The device of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def device_name() -> str:
    """Return the name of the device, to record it next to measurements."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def default_device() -> torch.device:
    """Return the device on which a run computes on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine_memory() -> tuple[int | None, int | None]:
    """Return the bytes of the machine's memory, and how many of them programs can still use; None where unknown."""
    total, free = _pages("SC_PHYS_PAGES"), _pages("SC_AVPHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):  # with what the system caches and can give back
                free = 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    return total, free


def _pages(name: str) -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf(name)
    except (AttributeError, OSError, ValueError):  # this system does not count them
        return None
