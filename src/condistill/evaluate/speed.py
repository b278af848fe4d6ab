"""What drawing an image costs: time, measured in turns, and the peak memory of one denoiser call."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condistill.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, image_noise

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
    timesteps = family.timesteps(torch.full((batch_size,), 0.5)).to(family.device)
    condition = family.null_condition(batch_size)
    if family.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(family.device)
        before = torch.cuda.memory_allocated(family.device)
        family.predict(denoiser, x_t, timesteps, condition)
        return float((weights + torch.cuda.max_memory_allocated(family.device) - before) / GIB)
    with LiveMemory() as memory:
        family.predict(denoiser, x_t, timesteps, condition)
    return float((weights + memory.peak) / GIB)


def sec_per_image(
    family: Family,
    denoisers: Mapping[str, nn.Module],
    sampling: Mapping[str, Sampling],
    *,
    repeats: int = 3,
) -> dict[str, float]:
    """Median seconds for one latent at batch size 1; models take turns, so that a busy machine is fair to all."""
    noise = torch.from_numpy(image_noise(0, Stream.EVALUATION_NOISE, 0, family.latent_shape))[None]
    times: dict[str, list[float]] = {name: [] for name in denoisers}
    for repeat in range(repeats + 1):
        for name, denoiser in denoisers.items():
            started = time.perf_counter()
            family.sample(
                denoiser,
                [""],
                noise,
                num_inference_steps=sampling[name].num_inference_steps,
                guidance_scale=sampling[name].guidance_scale,
                seeds=[0],
                scheduler=sampling[name].scheduler(family),
            )
            if family.device.type == "cuda":
                torch.cuda.synchronize(family.device)
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}
