"""Copies from the CPU to a GPU that are queued: the CPU does not wait for the work before them."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device.

    From the CPU to a GPU, `Tensor.to` waits until the GPU has done all that was queued before. Here the tensor is put
    into memory that the GPU reads by itself, and the copy is queued like any other work.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
