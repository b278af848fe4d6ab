"""Seconds of a forward and of an image."""

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


def seconds_of(
    work: Callable[[], object],
    device: torch.device,
    *,
    repeats: int = 5,
    prepare: Callable[[], object] = lambda: None,
) -> float:
    """Median time of some work on a device, after a first time that warms up.

    Args:
        prepare: done before each time, and not timed.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(repeats + 1):
        prepare()
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def forward_timer(family: Family, *, repeats: int = 5) -> Callable[[ModelMixin], float]:
    """What times one forward of one sample on the family's device, in seconds: the fastest, after one to warm up.

    Whatever else the machine does only adds to it, and students of nearly the same size must not change places.
    """
    x_t = torch.zeros(1, *family.latent_shape, device=family.device)
    timesteps = family.noise.timesteps(torch.full((1,), 0.5)).to(family.device)
    condition = family.encode([""])

    @torch.no_grad()
    def sec_per_forward(shapes: ModelMixin) -> float:
        kind, usual = cast("Any", type(shapes)), torch.get_default_dtype()
        torch.set_default_dtype(family.denoiser.dtype)  # made in it: float32 would take twice the room first
        try:
            with torch.random.fork_rng(devices=[]), torch.device(family.device):
                denoiser = kind.from_config(plain_config(shapes))
        finally:
            torch.set_default_dtype(usual)
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            family.predict(denoiser, x_t, timesteps, condition)
            if family.device.type == "cuda":
                torch.cuda.synchronize(family.device)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    return sec_per_forward
