"""Denoisers on the meta device, which have shapes but no weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn


def plain_config(denoiser: ModelMixin) -> dict[str, Any]:
    """Return the constructor arguments of a denoiser, without the entries that diffusers adds to its config.

    These are private ones, and how the weights are quantised.
    """
    config = dict(denoiser.config).items()
    return {key: value for key, value in config if not key.startswith("_") and key != "quantization_config"}


def build_on_meta(model_class: type[ModelMixin], config: dict[str, Any]) -> ModelMixin:
    """Return a model on the meta device; it needs no memory for weights and draws no random numbers."""
    with torch.device("meta"):
        return model_class.from_config(config)


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def matmul_parameters(module: nn.Module) -> int:
    """Return the number of parameters that every token is multiplied with.

    These are the entries of matrices and kernels; embedding tables and vectors do not count.
    """
    in_tables = sum(parameters(part) for part in module.modules() if isinstance(part, nn.Embedding))
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1) - in_tables
