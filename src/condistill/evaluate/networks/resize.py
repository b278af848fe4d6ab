"""Resize images with a named filter, the same for generated and for reference images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from condistill.config.evaluate import ResizeFilter

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


def resize(images: NDArray[np.uint8], pixels: int | None, filter_name: ResizeFilter) -> NDArray[np.uint8]:
    """Return the central square of images, resized by Pillow; see `resize_image`.

    Args:
        images: `[N, H, W, 3]`.
        pixels: height and width of the result; None: the images stay as they are.

    Returns:
        `[N, pixels, pixels, 3]`.
    """
    if pixels is None or images.shape[1:3] == (pixels, pixels):
        return images
    resized = [resize_image(Image.fromarray(image), pixels, filter_name) for image in images]
    return np.stack(resized) if resized else np.zeros((0, pixels, pixels, 3), np.uint8)


def resize_image(image: Image.Image, pixels: int, filter_name: ResizeFilter) -> NDArray[np.uint8]:
    """Return the central square of an RGB image, whose side is the shorter side of the image, resized by Pillow.

    When the image gets smaller, the filter averages over the area of an output pixel (antialiasing). An image that has
    the size already is not changed.
    """
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    cropped = image if (width, height) == (side, side) else image.crop(box)
    if side == pixels:
        return np.asarray(cropped, np.uint8)
    return np.asarray(cropped.resize((pixels, pixels), _FILTERS[filter_name]), np.uint8)
