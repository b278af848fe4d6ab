from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from condistill.errors import CondistillError
from condistill.teachers.family import Family
from condistill.teachers.pixels import images_at_once, to_pixels


def test_pixels_are_clamped_and_rounded() -> None:
    images = torch.tensor([-math.inf, -1.0, 0.0, 1.0, 7.0, math.inf]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_pixels(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize(
    ("dtype", "remedy"), [(torch.float16, "float16; set teacher.dtype: float32"), (torch.float32, "check its weights")]
)
def test_an_autoencoder_that_overflows_is_refused_instead_of_giving_black_images(
    dtype: torch.dtype, remedy: str
) -> None:
    images = torch.zeros(1, 3, 2, 2, dtype=dtype)
    images[0, 0, 0, 0] = math.nan
    with pytest.raises(CondistillError, match=f"decodes latents to NaN in .*{remedy}"):
        to_pixels(images)


def test_few_large_images_are_decoded_at_once_and_many_small_ones() -> None:
    assert [images_at_once((side, side)) for side in (64, 512, 1024, 2048)] == [256, 4, 1, 1]


def test_images_decoded_in_slices_are_those_decoded_at_once(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(5, *tiny_family.latent_shape, generator=torch.Generator().manual_seed(0))
    whole = tiny_family.decode(latents)
    height, width = tiny_family.image_size
    monkeypatch.setattr("condistill.teachers.pixels.PIXELS_AT_ONCE", 2 * height * width)
    decoded: list[int] = []
    right = tiny_family.pipeline.vae.decode

    def decode(part: torch.Tensor, **options: Any) -> Any:
        decoded.append(len(part))
        return right(part, **options)

    monkeypatch.setattr(tiny_family.pipeline.vae, "decode", decode)
    slices = tiny_family.decode(latents)
    assert decoded == [2, 2, 1]
    assert np.abs(slices.astype(int) - whole.astype(int)).max() <= 1
