"""Devices by name, with their manufacturers' figures; and the present device, measured."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from condistill.errors import CondistillError
from condistill.profiling.memory import GIB
from condistill.profiling.timing import median_seconds
from condistill.teachers.load import choose_dtype
from condistill.utils.hardware import default_device

PRESENT = "present"
EFFICIENCY = 0.3
"""Assumed share of the tensor cores' peak that a training reaches. On an H100, trainings of five students with
micro-batches of 8 to 32 reach 22 to 37 % (benchmarks/plan.md); BK-SDM's 300 hours for 50,000 steps on one A100 (arXiv
2305.15798) are 8 %."""
OTHER_EFFICIENCY = 0.5
"""Assumed share of the peak of other arithmetic that a training reaches."""


@dataclass(frozen=True)
class Device:
    """The figures of a device."""

    name: str
    half_flops: float
    """Peak FLOP/s of matrix products in bfloat16 (float16 on a T4) with float32 sums; a multiply-add is two."""
    single_flops: float
    """The same in float32, without TF32."""
    convolution_flops: float
    """The same of convolutions in float32, for which torch uses TF32 where the device has it."""
    memory_bytes: int
    bandwidth: float
    """Bytes per second between the device and its memory."""
    half: torch.dtype = torch.bfloat16
    measured: bool = False
    """Whether the rates were measured by a matrix product and a copy; otherwise they are the manufacturer's."""
    is_host: bool = False
    """Whether it is a CPU, whose memory is that of the machine."""

    def teacher_dtype(self, setting: str) -> torch.dtype:
        """Return the dtype of a teacher on this device, for a setting of `teacher.dtype`."""
        if setting != "auto":
            dtype: torch.dtype = getattr(torch, setting)
            return dtype
        return choose_dtype("auto", default_device()) if self.measured else self.half


@dataclass(frozen=True)
class Hardware:
    """The devices that share the work, and the assumed share of their peak that is reached."""

    device: Device
    count: int = 1
    efficiency: float = EFFICIENCY

    def seconds(self, macs: float, dtype: torch.dtype, *, convolutions: float = 0) -> float:
        """Return the seconds that multiply-accumulates take on one of the devices.

        Args:
            convolutions: how many of them are in convolutions; in float32 only these may use tensor cores.
        """
        device = self.device
        if dtype != torch.float32:
            return 2 * macs / (device.half_flops * self.efficiency)
        on_tensor_cores = device.convolution_flops > 1.5 * device.single_flops
        share = self.efficiency if on_tensor_cores else OTHER_EFFICIENCY
        rest = (macs - convolutions) / (device.single_flops * OTHER_EFFICIENCY)
        return 2 * (convolutions / (device.convolution_flops * share) + rest)


def _named(name: str, flops: tuple[float, float, float], gib: float, bandwidth: float) -> Device:
    """Return a device.

    Args:
        flops: TFLOP/s in half precision, float32 and TF32.
        gib: memory in GiB, as the driver reports it.
        bandwidth: in GB/s.
    """
    dtype = torch.float16 if name == "t4" else torch.bfloat16
    half, single, tf32 = (rate * 1e12 for rate in flops)
    return Device(name, half, single, tf32, int(gib * GIB), bandwidth * 1e9, dtype)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _named("a100-40gb", (312, 19.5, 156), 39.4, 1555),
        _named("a100-80gb", (312, 19.5, 156), 79.3, 2039),
        _named("h100", (746, 51, 212), 79.1, 2670),
        _named("h200", (746, 51, 212), 139.8, 4800),
        _named("rtx-3090", (71, 35.6, 35.6), 23.6, 936),
        _named("rtx-4090", (165, 82.6, 82.6), 23.5, 1008),
        _named("l4", (121, 30.3, 60.5), 22.0, 300),
        _named("t4", (65, 8.1, 8.1), 14.6, 320),
    )
}
"""From data sheets: dense tensor-core figures; of data-centre cards, those of the SXM versions. Those of an H100 are
measured (benchmarks/plan.md): a matrix product reaches 746 TFLOP/s of the 989 of its sheet, and the same processor is
in an H200, whose bandwidth is that of its sheet."""


def find_device(name: str | Device) -> Device:
    """Return a device by its name; `present` is the device that a run would use here. A device is returned as it is.

    Raises:
        CondistillError: there is no such name; the message lists all.
    """
    if isinstance(name, Device):
        return name
    if name == PRESENT:
        return present_device()
    if name not in DEVICES:
        raise CondistillError(f"the device {name!r} is not known; choose one of {PRESENT}, {', '.join(DEVICES)}")
    return DEVICES[name]


def present_device() -> Device:
    """Return the device of this machine, with rates that are measured in a fraction of a second."""
    device = default_device()
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    else:
        name = f"cpu, {torch.get_num_threads()} threads"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    size, half = (8192, choose_dtype("auto", device)) if device.type == "cuda" else (768, torch.bfloat16)
    rates = {dtype: _product_rate(device, dtype, size) for dtype in {half, torch.float32}}
    convolution = _convolution_rate(device, size // 16)
    single, bandwidth, is_host = rates[torch.float32], _copy_rate(device), device.type == "cpu"
    return Device(name, rates[half], single, convolution, memory, bandwidth, half, measured=True, is_host=is_host)


def _product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / median_seconds(lambda: matrix @ matrix, device)


def _convolution_rate(device: torch.device, channels: int) -> float:
    images = torch.randn(8, channels, 32, 32, device=device)
    weight = torch.randn(channels, channels, 3, 3, device=device)
    with torch.no_grad():
        seconds = median_seconds(lambda: torch.conv2d(images, weight, padding=1), device)
    return 2 * images.numel() * channels * 9 / seconds


def _copy_rate(device: torch.device) -> float:
    source = torch.zeros(2**26 if device.type == "cuda" else 2**24, device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device)
