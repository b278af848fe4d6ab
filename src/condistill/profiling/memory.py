"""Peak memory of a computation: of one denoiser evaluation, or of any code on a device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condistill.teachers.family import Family

GIB = 2**30


class MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are created while it is active and still alive.

    Attributes:
        now: bytes alive.
        peak: the largest value of `now`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):  # a view of an input, such as a weight, needs no new memory
                self._seen.add(leaf.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._seen:
                    self._seen.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return the bytes at the peak of some work on a device, beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with MemoryMeter() as meter:
        work()
    return int(meter.peak)


def resident_bytes(*, peak: bool = False) -> int:
    """Return the memory that this process holds, files that it has mapped included; 0 where the system does not say.

    Args:
        peak: return the most since the start of the process, or since `reset_resident_peak`.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    name = "VmHWM:" if peak else "VmRSS:"
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def reset_resident_peak() -> bool:
    """Let the peak of `resident_bytes` start anew, and return whether the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


@torch.no_grad()
def peak_memory(family: Family, denoiser: nn.Module, *, batch_size: int = 1) -> int:
    """Return the bytes of a denoiser's weights and of the peak of one evaluation."""
    weights = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    x_t = torch.zeros(batch_size, *family.latent_shape, device=family.device)
    timesteps = family.noise.timesteps(torch.full((batch_size,), 0.5)).to(family.device)
    condition = family.encode([""] * batch_size)
    return weights + peak_bytes(lambda: family.predict(denoiser, x_t, timesteps, condition), family.device)
