"""What a denoiser costs: parameters and multiply-accumulates, counted without memory on the meta device."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from diffusers import ModelMixin

from condistill.errors import CondistillError
from condistill.profiling.shapes import ShapesOnly
from condistill.teachers.registry import family_of
from condistill.utils.meta import build_on_meta, plain_config


def example_inputs(
    denoiser: ModelMixin, *, size: int | tuple[int, int] | None = None, text_length: int = 77
) -> dict[str, Any]:
    """Keyword arguments of one forward pass of one sample, on the meta device.

    Args:
        size: height and width of the latents; without it the config's `sample_size`.
        text_length: tokens of the prompt's embedding.

    Raises:
        CondistillError: there is no size, or the denoiser asks for conditions other than text.
    """
    size = denoiser.config.get("sample_size") if size is None else size
    if size is None:
        raise CondistillError("the denoiser's config has no sample_size; give the height and width of its latents")
    height, width = (size, size) if isinstance(size, int) else size
    return family_of(denoiser).example_inputs(denoiser, (height, width), text_length)


def macs(denoiser: ModelMixin, *, size: int | tuple[int, int] | None = None, text_length: int = 77) -> int:
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
def _macs(kind: type[ModelMixin], config: str, size: int | tuple[int, int] | None, text_length: int) -> int:
    copy = build_on_meta(kind, json.loads(config))
    inputs = example_inputs(copy, size=size, text_length=text_length)
    with torch.no_grad(), ShapesOnly() as counted:
        copy(**inputs)
    total: int = counted.macs
    return total
