"""Weights that have just been loaded, and the memory that they are in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_cast(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Return whether a weight changes when a model gets another dtype: diffusers keeps some layers in float32.

    Args:
        name: of the weight in the model.
    """
    kept = getattr(module, "_keep_in_fp32_modules", None) or ()
    return tensor.is_floating_point() and not any(part in name for part in kept)


@torch.no_grad()
def hold_weights(module: nn.Module, *, channels_last: bool = False) -> None:
    """Give every weight on a CPU memory of its own, one after the other.

    Weights that were loaded from safetensors are parts of a mapped file. As long as one of them is, every page of the
    file that was read counts as memory of the process, also those of weights that were copied since.

    Args:
        channels_last: store the kernels of convolutions channels last.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":
            is_kernel = channels_last and tensor.dim() == 4
            layout = torch.channels_last if is_kernel else torch.contiguous_format
            tensor.data = tensor.data.clone(memory_format=layout)
