"""Images become inputs as transformers' own image processors make them, and unknown steps are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import image_processor

from condistill.errors import CondistillError
from condistill.evaluate.networks.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    read_preprocessing,
)

DEFAULT = Preprocessing(28, "crop", 28)
SHAPES = [(40, 40), (28, 28), (20, 20), (40, 61), (61, 40)]


def _images(shape: tuple[int, int], count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape, 3), np.uint8)


def _read(folder: Path, config: dict[str, Any], name: str = "preprocessor_config.json") -> Preprocessing:
    (folder / name).write_text(json.dumps(config))
    return read_preprocessing(folder, DEFAULT, "evaluate.networks.clip")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("crop", [28, 20])
def test_clip_inputs_equal_those_of_transformers(shape: tuple[int, int], crop: int, tmp_path: Path) -> None:

    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": crop, "width": crop}}
    theirs = image_processor("clip")(**sizes)(list(_images(shape)), return_tensors="pt")["pixel_values"]
    ours = _read(tmp_path, sizes)(_images(shape))
    assert ours.shape == (2, 3, crop, crop)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_siglip_inputs_equal_those_of_transformers(shape: tuple[int, int], tmp_path: Path) -> None:

    config = {"size": {"height": 28, "width": 28}, "resample": 2, "image_mean": HALF, "image_std": HALF}
    theirs = image_processor("siglip")(**config)(list(_images(shape)), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(_read(tmp_path, config)(_images(shape)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_dinov2_inputs_equal_those_of_transformers_without_a_crop(shape: tuple[int, int]) -> None:

    ours = Preprocessing(28, "stretch", 28, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    processor = image_processor("bit")(
        size={"height": 28, "width": 28},
        do_center_crop=False,
        resample=3,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )
    theirs = processor(list(_images(shape)), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours(_images(shape)), theirs, rtol=1e-5, atol=1e-5)


def test_an_image_that_is_padded_is_whole_and_centred() -> None:
    images = np.full((1, 20, 40, 3), 255, np.uint8)
    values = Preprocessing(28, "pad", 28, mean=(0.0,) * 3, std=(1.0,) * 3)(images)[0, 0]
    assert values[7:21].eq(1).all()
    assert values[:7].eq(0).all()
    assert values[21:].eq(0).all()


def test_without_a_file_the_usual_preprocessing_is_used(tmp_path: Path) -> None:
    assert read_preprocessing(tmp_path, DEFAULT, "x") is DEFAULT
    assert str(DEFAULT) == "bicubic to 28 px, central square"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"size": 28, "crop_size": 28}, Preprocessing(28, "crop", 28)),
        ({"size": {"height": 28, "width": 28}, "do_center_crop": False}, Preprocessing(28, "stretch", 28)),
        ({"size": {"height": 28, "width": 28}}, Preprocessing(28, "stretch", 28)),
        ({"size": [28, 28], "resample": 2}, Preprocessing(28, "crop", 28, Image.Resampling.BILINEAR)),
        ({"image_mean": HALF, "image_std": HALF}, Preprocessing(28, "crop", 28, mean=HALF, std=HALF)),
    ],
)
def test_every_form_in_which_sizes_are_published_is_read(
    config: dict[str, Any], expected: Preprocessing, tmp_path: Path
) -> None:
    assert _read(tmp_path, config) == expected
    (tmp_path / "preprocessor_config.json").unlink()
    assert _read(tmp_path, {"image_processor": config}, "processor_config.json") == expected


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"do_resize": False}, "do_resize: False, and this step cannot be left out"),
        ({"size": {"height": 28, "width": 30}}, "is not one side of a square"),
        ({"size": {"longest_edge": 28}}, "is not one side of a square"),
        ({"size": "large"}, "is not a number of pixels"),
        ({"size": 10**9}, "is not possible"),
        ({"size": 20, "crop_size": 28}, "is not possible"),
        ({"image_std": [0, 0, 0]}, "is not possible"),
        ({"image_mean": ["a", 0, 0]}, "could not convert"),
        ({"resample": 99}, "99 is not a valid Resampling"),
        ({"rescale_factor": 1}, "only 1/255 is known"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=reason) as caught:
        _read(tmp_path, config)
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_file_is_reported(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CondistillError, match=r"clip: .*preprocessor_config\.json .*; download it again"):
        read_preprocessing(tmp_path, DEFAULT, "evaluate.networks.clip")


def test_the_usual_values_are_those_of_clip() -> None:
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert (list(CLIP_MEAN), list(CLIP_STD)) == (list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD))
