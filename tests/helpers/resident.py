"""The memory that a piece of work needs on this machine, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from condistill.profiling.memory import reset_resident_peak, resident_bytes

MIB = 2**20


def resident_growth(work: Callable[[], object]) -> int:
    """Return the bytes by which the process grew at the worst moment of some work."""
    if not reset_resident_peak():
        pytest.skip("this system does not count the peak of a process's memory")
    before = resident_bytes()
    work()
    return resident_bytes(peak=True) - before
