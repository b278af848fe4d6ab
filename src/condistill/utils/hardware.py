"""The device of this machine."""

from __future__ import annotations

import platform

import torch


def device_name() -> str:
    """Return the name of the device, to record it next to measurements."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def default_device() -> torch.device:
    """Return the device on which a run computes on this machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
