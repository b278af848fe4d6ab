"""Devices by name, with their makers' figures; and the present one, measured."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from condistill.errors import CondistillError
from condistill.profiling.timing import seconds_of
from condistill.teachers.load import choose_dtype
from condistill.utils.hardware import present_torch_device

GIB = 2**30
PRESENT = "present"


@dataclass(frozen=True)
class Device:
    """What a device can do at best."""

    name: str
    half_flops: float
    """Dense multiply-adds in bfloat16 (float16 on a T4) with float32 sums, per second, each counted as two."""
    single_flops: float
    """In float32, without TF32."""
    convolution_flops: float
    """Of convolutions in float32, for which torch uses TF32 where there is such a thing."""
    memory_bytes: int
    bandwidth: float
    """Bytes per second between the device and its memory."""
    half: torch.dtype = torch.bfloat16
    measured: bool = False
    """By a matrix product and a copy of ours; else the figures are the maker's."""

    def teacher_dtype(self, asked: str) -> torch.dtype:
        """What `teacher.dtype` means on it."""
        if asked != "auto":
            dtype: torch.dtype = getattr(torch, asked)
            return dtype
        return choose_dtype("auto", present_torch_device()) if self.measured else self.half


def _named(name: str, flops: tuple[float, float, float], gib: float, bandwidth: float) -> Device:
    """Half precision, float32 and TF32 in TFLOP/s, memory in GiB as the driver reports it, bandwidth in GB/s."""
    dtype = torch.float16 if name == "t4" else torch.bfloat16
    half, single, tf32 = (rate * 1e12 for rate in flops)
    return Device(name, half, single, tf32, int(gib * GIB), bandwidth * 1e9, dtype)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _named("a100-40gb", (312, 19.5, 156), 39.4, 1555),
        _named("a100-80gb", (312, 19.5, 156), 79.3, 2039),
        _named("h100", (989, 67, 494), 79.1, 3350),
        _named("h200", (989, 67, 494), 139.8, 4800),
        _named("rtx-3090", (71, 35.6, 35.6), 23.6, 936),
        _named("rtx-4090", (165, 82.6, 82.6), 23.5, 1008),
        _named("l4", (121, 30.3, 60.5), 22.0, 300),
        _named("t4", (65, 8.1, 8.1), 14.6, 320),
    )
}
"""Data sheets: dense tensor-core figures, SXM versions of the data-centre cards."""


def find_device(name: str) -> Device:
    """A device by its name; `present` is the one that a run would use here.

    Raises:
        CondistillError: lists the names.
    """
    if name == PRESENT:
        return present_device()
    if name not in DEVICES:
        raise CondistillError(f"the device {name!r} is not known; choose one of {PRESENT}, {', '.join(DEVICES)}")
    return DEVICES[name]


def present_device() -> Device:
    """The device here, with the rates of a matrix product and of a copy: a fraction of a second."""
    device = present_torch_device()
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    else:
        name = f"cpu, {torch.get_num_threads()} threads"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    size, half = (8192, choose_dtype("auto", device)) if device.type == "cuda" else (768, torch.bfloat16)
    rates = {dtype: _product_rate(device, dtype, size) for dtype in {half, torch.float32}}
    convolution = _convolution_rate(device, size // 16)
    return Device(name, rates[half], rates[torch.float32], convolution, memory, _copy_rate(device), half, measured=True)


def _product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds_of(lambda: matrix @ matrix, device)


def _convolution_rate(device: torch.device, channels: int) -> float:
    images = torch.randn(8, channels, 32, 32, device=device)
    weight = torch.randn(channels, channels, 3, 3, device=device)
    with torch.no_grad():
        seconds = seconds_of(lambda: torch.conv2d(images, weight, padding=1), device)
    return 2 * images.numel() * channels * 9 / seconds


def _copy_rate(device: torch.device) -> float:
    source = torch.zeros(2**26 if device.type == "cuda" else 2**24, device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)
