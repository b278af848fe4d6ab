from __future__ import annotations

from pathlib import Path

import pytest
import torch

from condistill.errors import CondistillError
from condistill.plan.devices import DEVICES, find_device, present_device
from condistill.profiling.memory import GIB


def test_every_device_has_plausible_figures() -> None:
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.half_flops >= device.convolution_flops >= device.single_flops > 1e12
        assert 10 * GIB < device.memory_bytes < 200 * GIB
        assert 1e11 < device.bandwidth < 1e13
        assert not device.measured


def test_the_table_of_devices_is_the_one_that_is_used() -> None:
    document = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    lines = [line.strip("|") for line in document.splitlines() if line.startswith("| `")]
    documented = {}
    for name, *figures in ([cell.strip(" `") for cell in line.split("|")] for line in lines):
        documented[name] = [float(figure) for figure in figures]
    assert list(documented) == list(DEVICES)
    for name, device in DEVICES.items():
        flops = (device.half_flops, device.single_flops, device.convolution_flops)
        assert documented[name] == pytest.approx([*(rate / 1e12 for rate in flops), device.memory_bytes / GIB])


def test_the_dtype_of_a_teacher_follows_the_recipe_then_the_device() -> None:
    assert find_device("t4").teacher_dtype("auto") == torch.float16
    assert find_device("h100").teacher_dtype("auto") == torch.bfloat16
    assert find_device("h100").teacher_dtype("float32") == torch.float32


def test_an_unknown_device_is_refused_with_all_names() -> None:
    with pytest.raises(CondistillError, match="'b9000' is not known; choose one of present, a100-40gb"):
        find_device("b9000")


def test_the_present_device_is_measured() -> None:
    device = present_device()
    assert device.measured
    assert min(device.half_flops, device.single_flops, device.convolution_flops, device.bandwidth) > 1e6
    assert device.memory_bytes > GIB / 4
