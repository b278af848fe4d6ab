"""Decode latents to pixels, as many at once as fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condistill.errors import CondistillError

PIXELS_AT_ONCE = 2**20
"""Pixels that an autoencoder decodes at once: one image of 1,024 x 1,024 pixels, whose activations take about 3 GiB in
float32, or four of 512 x 512."""


def images_at_once(image_size: tuple[int, int]) -> int:
    """Return how many images of this height and width are decoded at once; at least one."""
    height, width = image_size
    return max(PIXELS_AT_ONCE // max(height * width, 1), 1)


def decode_in_slices(
    latents: Tensor, decode: Callable[[Tensor], Tensor], image_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the images `[B, H, W, 3]` of latents `[B, C, h, w]`, decoded a few at a time.

    Args:
        decode: returns images `[b, 3, H, W]` in [-1, 1] of some of the latents.
        image_size: (height, width) of an image in pixels.
    """
    parts = [to_pixels(decode(part)) for part in torch.split(latents, images_at_once(image_size))]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Return images `[B, 3, H, W]` in [-1, 1] as uint8 `[B, H, W, 3]`.

    Raises:
        CondistillError: a number is NaN, which would be a black pixel.
    """
    if images.isnan().any():
        dtype = str(images.dtype).removeprefix("torch.")
        remedy = "check its weights" if dtype == "float32" else "set teacher.dtype: float32"
        raise CondistillError(f"the autoencoder decodes latents to NaN in {dtype}; {remedy}")
    clamped = images.float().clamp(-1, 1)
    pixels: NDArray[np.uint8] = ((clamped + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels
