"""Seconds of an image, of a denoiser evaluation, and of any code on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from diffusers import ModelMixin
from torch import nn

from condistill.pipelines.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.meta import plain_config
from condistill.utils.randomness import Stream, image_noise


def sec_per_image(
    family: Family,
    denoisers: Mapping[str, nn.Module],
    sampling: Mapping[str, Sampling],
    *,
    repeats: int = 3,
) -> dict[str, float]:
    """Return the median seconds of generating one latent at batch size 1, by model.

    Models take turns, so that a busy machine slows all of them down.
    """
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
            _synchronize(family.device)
            if repeat:  # the first is a warm-up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def median_seconds(
    work: Callable[[], object],
    device: torch.device,
    *,
    repeats: int = 5,
    prepare: Callable[[], object] = lambda: None,
) -> float:
    """Return the median seconds of some work on a device, after a warm-up.

    Args:
        prepare: called before each time, and not timed.
    """
    times = []
    for _ in range(repeats + 1):
        prepare()
        _synchronize(device)
        started = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def forward_timer(family: Family, *, repeats: int = 5) -> Callable[[ModelMixin], float]:
    """Return a function that times one evaluation of one sample, in seconds, for a denoiser on the meta device.

    The function builds the denoiser with random weights on the family's device and returns the shortest of `repeats`
    times, after a warm-up. Other work of the machine can only add to a time, and students of nearly the same size must
    not change places.
    """
    x_t = torch.zeros(1, *family.latent_shape, device=family.device)
    timesteps = family.noise.timesteps(torch.full((1,), 0.5)).to(family.device)
    condition = family.encode([""])

    @torch.no_grad()
    def sec_per_forward(shapes: ModelMixin) -> float:
        kind, default_dtype = cast("Any", type(shapes)), torch.get_default_dtype()
        torch.set_default_dtype(family.denoiser.dtype)  # a float32 copy would first need twice the memory
        try:
            with torch.random.fork_rng(devices=[]), torch.device(family.device):
                denoiser = kind.from_config(plain_config(shapes))
        finally:
            torch.set_default_dtype(default_dtype)
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            family.predict(denoiser, x_t, timesteps, condition)
            _synchronize(family.device)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    return sec_per_forward


def _synchronize(device: torch.device) -> None:
    """Wait for the work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
