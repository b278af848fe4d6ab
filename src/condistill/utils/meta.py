"""Denoisers of shapes only, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn


def plain_config(denoiser: ModelMixin) -> dict[str, Any]:
    """The constructor's arguments, without what diffusers notes about where the model came from."""
    return {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}


def build_on_meta(kind: type[ModelMixin], config: dict[str, Any]) -> ModelMixin:
    """A denoiser of shapes only: no memory, no random numbers."""
    with torch.device("meta"):
        return kind.from_config(config)


def parameters(module: nn.Module) -> int:
    """Number of weights in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def weights_of_products(module: nn.Module) -> int:
    """Of these, those that every token is multiplied with: matrices and kernels, not tables of embeddings."""
    tables = sum(parameters(part) for part in module.modules() if isinstance(part, nn.Embedding))
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1) - tables
