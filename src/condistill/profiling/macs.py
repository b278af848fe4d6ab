"""Multiply-accumulates of a denoiser, counted on the meta device."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch
from diffusers import ModelMixin

from condistill.profiling.shapes import ShapesOnly, example_inputs
from condistill.utils.meta import build_on_meta, plain_config


def macs(denoiser: ModelMixin, *, size: int | tuple[int, int] | None = None, text_length: int = 77) -> int:
    """Return the multiply-accumulates of one forward of one sample: matrix products, convolutions and attention.

    Args:
        size: height and width of the latents; by default the config's `sample_size`.
        text_length: tokens of the prompt.

    Raises:
        CondistillError: see `example_inputs`.
    """
    kind: Any = type(denoiser)
    return _macs(kind, json.dumps(plain_config(denoiser)), size, text_length)


@lru_cache(maxsize=64)  # a forward on the meta device takes a second for Stable Diffusion
def _macs(kind: type[ModelMixin], config: str, size: int | tuple[int, int] | None, text_length: int) -> int:
    copy = build_on_meta(kind, json.loads(config))
    inputs = example_inputs(copy, size=size, text_length=text_length)
    with torch.no_grad(), ShapesOnly() as counted:
        copy(**inputs)
    total: int = counted.macs
    return total
