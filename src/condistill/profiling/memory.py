"""What drawing an image costs: time, measured in turns, and the peak memory of one denoiser call."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condistill.teachers.family import Family

GIB = 2**30


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages made while it is on, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):  # a view of what was there before, such as weights, makes nothing
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


@torch.no_grad()
def peak_memory_gb(family: Family, denoiser: nn.Module, *, batch_size: int = 1) -> float:
    """GiB of the denoiser's weights and the tensors alive at the worst moment of one call."""
    weights = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    x_t = torch.zeros(batch_size, *family.latent_shape, device=family.device)
    timesteps = family.noise.timesteps(torch.full((batch_size,), 0.5)).to(family.device)
    condition = family.encode([""] * batch_size)
    if family.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(family.device)
        before = torch.cuda.memory_allocated(family.device)
        family.predict(denoiser, x_t, timesteps, condition)
        return float((weights + torch.cuda.max_memory_allocated(family.device) - before) / GIB)
    with LiveMemory() as memory:
        family.predict(denoiser, x_t, timesteps, condition)
    return float((weights + memory.peak) / GIB)
