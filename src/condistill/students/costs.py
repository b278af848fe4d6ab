"""What a denoiser costs: parameters and multiply-accumulates, counted without memory on the meta device."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from condistill.errors import CondistillError


def parameters(module: nn.Module) -> int:
    """Number of weights in a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def plain_config(denoiser: UNet2DConditionModel) -> dict[str, Any]:
    """The constructor's arguments, without what diffusers notes about where the model came from."""
    return {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}


def build_on_meta(kind: type[UNet2DConditionModel], config: dict[str, Any]) -> UNet2DConditionModel:
    """A denoiser of shapes only: no memory, no random numbers."""
    with torch.device("meta"):
        return kind.from_config(config)


def example_inputs(
    denoiser: UNet2DConditionModel, *, size: int | tuple[int, int] | None = None, text_length: int = 77
) -> dict[str, Tensor]:
    """Keyword arguments of one forward pass of one sample, on the meta device.

    Args:
        size: height and width of the latents; without it the config's `sample_size`.
        text_length: tokens of the prompt's embedding.

    Raises:
        CondistillError: there is no size, or the denoiser asks for conditions other than text.
    """
    config = denoiser.config
    size = config.sample_size if size is None else size
    if size is None:
        raise CondistillError("the denoiser's config has no sample_size; give the height and width of its latents")
    for setting in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        if config.get(setting) is not None:
            raise CondistillError(
                f"the denoiser has {setting}={config[setting]!r}; only denoisers conditioned on text alone are known"
            )
    height, width = (size, size) if isinstance(size, int) else size
    text_width = config.encoder_hid_dim or config.cross_attention_dim
    text_width = text_width if isinstance(text_width, int) else text_width[0]
    return {
        "sample": torch.empty(1, config.in_channels, height, width, device="meta"),
        "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
        "encoder_hidden_states": torch.empty(1, text_length, text_width, device="meta"),
    }


def macs(denoiser: UNet2DConditionModel, *, size: int | tuple[int, int] | None = None, text_length: int = 77) -> int:
    """Multiply-accumulates of one forward pass of one sample: matrix products, convolutions and attention.

    Args:
        size: height and width of the latents; without it the config's `sample_size`.
        text_length: tokens of the prompt's embedding.

    Raises:
        CondistillError: see `example_inputs`.
    """
    kind: Any = type(denoiser)
    return _macs(kind, json.dumps(plain_config(denoiser)), size, text_length)


@lru_cache(maxsize=64)  # a forward pass on the meta device takes a second for Stable Diffusion
def _macs(kind: type[UNet2DConditionModel], config: str, size: int | tuple[int, int] | None, text_length: int) -> int:
    copy = build_on_meta(kind, json.loads(config))
    inputs = example_inputs(copy, size=size, text_length=text_length)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy(**inputs)
    return int(counter.get_total_flops()) // 2
