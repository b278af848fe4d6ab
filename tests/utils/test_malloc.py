from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from condistill.utils.malloc import keep_freed_memory

FAULTS = """
import ctypes, resource, sys
from condistill.utils.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 20 * 2**20
for turn in range(9):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [libc.malloc(size) for _ in range(3)]
    for buffer in buffers:
        ctypes.memset(buffer, 1, size)
    for buffer in buffers:
        libc.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_buffers_that_are_allocated_again_need_no_new_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "default")
    }
    assert faults["keep"] * 10 < faults["default"]


def test_malloc_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


RELEASE = """
import ctypes
from condistill.profiling.memory import resident_bytes
from condistill.utils.malloc import keep_freed_memory, release_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
buffers = [libc.malloc(20 * 2**20) for _ in range(5)]
for buffer in buffers:
    ctypes.memset(buffer, 1, 20 * 2**20)
for buffer in buffers:
    libc.free(buffer)
before = resident_bytes()
release_freed_memory()
print(before - resident_bytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's malloc is not that of glibc")
def test_memory_that_is_kept_is_released_on_request() -> None:
    released = int(subprocess.run([sys.executable, "-c", RELEASE], check=True, capture_output=True).stdout)
    assert released > 90 * 2**20
