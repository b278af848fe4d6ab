"""Seconds of an image, of a denoiser evaluation, and of any code on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import ModelMixin
from torch import nn

from condistill.pipelines.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.meta import plain_config
from condistill.utils.randomness import Stream, image_noise

MIN_ROUNDS, MAX_ROUNDS = 5, 25
MAX_SECONDS = 3.0
"""How often the image of every model is timed."""
SLOW_SECONDS = 30.0
"""If one image of every model takes this long in all, each is timed twice: a longer time varies less, and five rounds
of full-size models on a CPU would take a quarter of an hour."""


@dataclass(frozen=True)
class Timing:
    """The seconds of some work that was repeated."""

    shortest: float
    """Other work of the machine can only add to a time, so this is the nearest to the time of the work itself."""
    median: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise the times of all rounds."""
        return cls(min(seconds), statistics.median(seconds), len(seconds))


def time_images(
    family: Family,
    denoisers: Mapping[str, nn.Module],
    sampling: Mapping[str, Sampling],
    *,
    on_image: Callable[..., object] = lambda **_: None,
) -> dict[str, Timing]:
    """Time the generation of one latent at batch size 1 with every model.

    Models take turns, in an order that is reversed every other round, so that a busy machine slows all of them down.
    After a warm-up there are at least `MIN_ROUNDS` rounds, and then as many up to `MAX_ROUNDS` as fit into
    `MAX_SECONDS`. Where the warm-up takes `SLOW_SECONDS` or more, it counts as the first of two rounds. Models of the
    same shapes that are sampled alike share their times: they differ in their weights only.

    Args:
        on_image: called after each image, and with `left_out=True` for each that is not timed because images are slow;
            at least as often as `fewest_images` returns.
    """
    noise = torch.from_numpy(image_noise(0, Stream.EVALUATION_NOISE, 0, family.latent_shape))[None]
    groups = _alike(denoisers, sampling)
    times: dict[str, list[float]] = {name: [] for name in dict.fromkeys(groups.values())}

    def seconds(name: str) -> float:
        started = time.perf_counter()
        family.sample(
            denoisers[name],
            [""],
            noise,
            num_inference_steps=sampling[name].num_inference_steps,
            guidance_scale=sampling[name].guidance_scale,
            seeds=[0],
            scheduler=sampling[name].scheduler(family),
        )
        _synchronize(family.device)
        elapsed = time.perf_counter() - started
        on_image()
        return elapsed

    first = {name: seconds(name) for name in times}
    if sum(first.values()) >= SLOW_SECONDS:
        again = {name: seconds(name) for name in [*times][::-1]}
        for _ in range((MIN_ROUNDS - 1) * len(times)):
            on_image(left_out=True)
        return {name: Timing.of([first[group], again[group]]) for name, group in groups.items()}
    for rounds in range(MAX_ROUNDS):
        if rounds >= MIN_ROUNDS and sum(map(sum, times.values())) >= MAX_SECONDS:
            break
        for name in list(times)[:: -1 if rounds % 2 else 1]:
            times[name].append(seconds(name))
    return {name: Timing.of(times[group]) for name, group in groups.items()}


def fewest_images(denoisers: Mapping[str, nn.Module], sampling: Mapping[str, Sampling]) -> int:
    """Return how many images `time_images` generates at least."""
    return (1 + MIN_ROUNDS) * len(set(_alike(denoisers, sampling).values()))


def _alike(denoisers: Mapping[str, nn.Module], sampling: Mapping[str, Sampling]) -> dict[str, str]:
    """Return for every model the first one that has the same shapes and is sampled alike."""
    first: dict[Any, str] = {}
    return {name: first.setdefault((shapes_of(denoiser), sampling[name]), name) for name, denoiser in denoisers.items()}


def shapes_of(denoiser: nn.Module) -> Any:
    """Return what the time of an image depends on of a denoiser: its class, and names, kinds and shapes of weights.

    A quantised weight is a tensor of another class, with the shape and the dtype of the weight that it stands for.
    """
    tensors = denoiser.state_dict().items()
    return type(denoiser), tuple((key, type(tensor), tensor.shape, tensor.dtype) for key, tensor in tensors)


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
