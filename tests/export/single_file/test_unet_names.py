from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from original_names import Shapes, original_counts, original_shapes

from condistill.config.sections import StudentSettings
from condistill.export.sdcpp import without_gaps
from condistill.export.single_file.unet import unet_tensors
from condistill.export.single_file.unet_names import PREFIX, Numbering
from condistill.export.single_file.unet_restore import restored_unet
from condistill.export.single_file.vae import vae_tensors
from condistill.export.source import Shape
from condistill.students.derive import student_shapes
from condistill.teachers.conversion import converted_tensors
from condistill.utils.meta import build_on_meta, plain_config

Build = Callable[[str], UNet2DConditionModel]
MODELS = {"sd1": "SD-1.4", "sd2": "SD-2.1", "sdxl": "SDXL"}
SLOW = {"sd2", "sdxl"}
PARAMETERS = [name if name not in SLOW else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
STUDENTS = [
    ("SD-1.4", {"preset": "b-base"}),
    ("SD-1.4", {"preset": "b-small"}),
    ("SD-1.4", {"preset": "b-tiny"}),
    ("SD-2.1", {"preset": "b-tiny"}),
    ("SDXL", {"preset": "koala-700m"}),
    ("SDXL", {"preset": "koala-1b"}),
]


@pytest.fixture(scope="module")
def teachers(full_size: Build) -> Build:
    """Each denoiser of full size once."""
    return cache(full_size)


def _file(unet: UNet2DConditionModel, numbering: Numbering = "contiguous") -> dict[str, torch.Tensor]:
    return dict(unet_tensors(plain_config(unet), unet.state_dict(), numbering))


def _shapes(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _shape(config: Mapping[str, Any]) -> Shape:
    classes = {"unet": ("diffusers", "UNet2DConditionModel")}
    return Shape(
        "StableDiffusionPipeline", "UNet2DConditionModel", config, components={"unet": config}, classes=classes
    )


def _on_meta(shapes: Shapes, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_the_lists_of_names_have_the_known_sizes() -> None:
    assert original_counts() == {"sd1": 686, "sd2": 686, "sdxl": 1680, "vae": 248}
    assert all(len(original_shapes(name)) == count for name, count in original_counts().items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_whole_unet_has_the_original_names_and_shapes_in_both_directions(name: str, teachers: Build) -> None:
    unet, expected = teachers(MODELS[name]), original_shapes(name)
    for numbering in ("contiguous", "original"):
        assert _shapes(_file(unet, numbering)) == {PREFIX + key: shape for key, shape in expected.items()}
    restored = restored_unet(_shape(plain_config(unet)), _on_meta(expected, PREFIX))
    assert _shapes(restored) == _shapes(unet.state_dict())


def test_an_autoencoder_has_the_original_names_in_both_directions() -> None:
    settings = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = build_on_meta(AutoencoderKL, settings | blocks)
    prefix, expected = "first_stage_model.", original_shapes("vae")
    found = dict(vae_tensors(plain_config(vae), vae.state_dict()))
    assert _shapes(found) == {prefix + name: shape for name, shape in expected.items()}
    assert _shapes(converted_tensors(vae, _on_meta(expected, prefix))) == _shapes(vae.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "settings"), STUDENTS, ids=str)
def test_the_layers_of_a_student_are_numbered_without_gaps(
    teacher: str, settings: dict[str, Any], teachers: Build
) -> None:
    student = student_shapes(teachers(teacher), StudentSettings.model_validate(settings))
    assert isinstance(student, UNet2DConditionModel)
    file = _file(student)
    for block in ("input_blocks", "output_blocks"):
        numbers = {int(found[1]) for name in file if (found := re.search(rf"\.{block}\.(\d+)\.", name))}
        assert numbers == set(range(len(numbers)))
    assert _shapes(restored_unet(_shape(plain_config(student)), file)) == _shapes(student.state_dict())


def test_the_numbers_of_removed_layers_stay_free_for_stable_diffusion_cpp(teachers: Build) -> None:
    student = student_shapes(teachers("SD-1.4"), StudentSettings(preset="b-tiny"))
    assert isinstance(student, UNet2DConditionModel)
    file = _file(student, "original")
    places = {".".join(name.removeprefix(PREFIX).split(".")[:3]) for name in file if "put_blocks" in name}
    inputs = {f"input_blocks.{number}.{part}" for number in (1, 4, 7) for part in (0, 1)}
    outputs = {f"output_blocks.{number}.{part}" for number in (0, 1, 3, 4, 6, 7) for part in (0, 1)}
    changes = {"input_blocks.0.0", "input_blocks.3.0", "input_blocks.6.0", "output_blocks.2.1", "output_blocks.5.2"}
    assert places == inputs | outputs | changes  # those of unet.hpp, `tiny_unet`
    assert without_gaps(file).keys() == _file(student).keys()
    assert _shapes(restored_unet(_shape(plain_config(student)), without_gaps(file))) == _shapes(student.state_dict())
