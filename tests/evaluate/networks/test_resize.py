"""Images get the size of the recipe with the named filter, cropped to their central square."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from condistill.config.evaluate import ResizeFilter
from condistill.evaluate.networks.resize import resize, resize_image


def _images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)


def test_images_without_a_size_or_of_the_size_stay_as_they_are() -> None:
    images = _images(8, 8)
    assert resize(images, None, "bicubic") is images
    assert resize(images, 8, "bicubic") is images


@pytest.mark.parametrize("name", get_args(ResizeFilter))
def test_every_filter_is_that_of_pillow(name: ResizeFilter) -> None:
    images = _images(12, 12)
    expected = [np.asarray(Image.fromarray(image).resize((5, 5), Image.Resampling[name.upper()])) for image in images]
    assert np.array_equal(resize(images, 5, name), np.stack(expected))


def test_a_box_filter_averages_the_area_of_a_pixel() -> None:
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, 3) * 4
    assert resize(images, 2, "box")[0, :, :, 0].tolist() == [[10, 18], [42, 50]]


@pytest.mark.parametrize(("height", "width"), [(8, 13), (13, 8)])
def test_only_the_central_square_is_used(height: int, width: int) -> None:
    images = _images(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    square = images[:, top : top + 8, left : left + 8]
    assert np.array_equal(resize(images, 4, "lanczos"), resize(square, 4, "lanczos"))
    assert np.array_equal(resize_image(Image.fromarray(images[0]), 8, "box"), square[0])


def test_no_images_become_no_images() -> None:
    assert resize(_images(8, 8)[:0], 4, "box").shape == (0, 4, 4, 3)
