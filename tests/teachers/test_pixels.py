from __future__ import annotations

import math

import pytest
import torch

from condistill.errors import CondistillError
from condistill.teachers.family import to_pixels


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
