"""The device at hand."""

from __future__ import annotations

import platform

import torch


def machine() -> str:
    """The device a figure was measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def present_torch_device() -> torch.device:
    """Where a run would compute here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
