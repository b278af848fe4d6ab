"""Denoisers of shapes only, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin


def plain_config(denoiser: ModelMixin) -> dict[str, Any]:
    """The constructor's arguments, without what diffusers notes about where the model came from."""
    return {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}


def build_on_meta(kind: type[ModelMixin], config: dict[str, Any]) -> ModelMixin:
    """A denoiser of shapes only: no memory, no random numbers."""
    with torch.device("meta"):
        return kind.from_config(config)
