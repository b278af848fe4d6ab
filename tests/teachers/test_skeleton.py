from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from full_size import DATA, SIZES
from torch import nn

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.family import Family
from condistill.teachers.skeleton import Skeleton, teacher_skeleton


def models(skeleton: Skeleton) -> dict[str, nn.Module]:
    components: dict[str, Any] = skeleton.family.pipeline.components
    return {name: model for name, model in components.items() if isinstance(model, nn.Module)}


def assert_all_on_meta(skeleton: Skeleton) -> None:
    for name, model in models(skeleton).items():
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}, name


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.slow
def test_a_directory_of_configs_gives_the_published_size_without_weights(name: str) -> None:
    denoiser, params, latent_shape, text_length = SIZES[name]
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(DATA / name)))
    assert skeleton.components[denoiser] == params
    assert skeleton.family.latent_shape == latent_shape
    assert skeleton.family.text_length == text_length
    assert_all_on_meta(skeleton)


def test_every_full_size_teacher_is_tested() -> None:
    assert {path.name for path in DATA.iterdir() if path.is_dir()} == set(SIZES)


def test_a_skeleton_has_the_shapes_of_the_loaded_teacher(tiny_skeleton: Skeleton, tiny_family: Family) -> None:
    assert_all_on_meta(tiny_skeleton)
    assert tiny_skeleton.family.latent_shape == tiny_family.latent_shape
    assert tiny_skeleton.family.text_length == tiny_family.text_length
    for name, model in models(tiny_skeleton).items():
        loaded = getattr(tiny_family.pipeline, name).state_dict()
        assert {key: value.shape for key, value in model.state_dict().items()} == {
            key: value.shape for key, value in loaded.items()
        }


def test_a_text_encoder_costs_every_matrix_once_per_token(tiny_skeleton: Skeleton) -> None:
    encoder = tiny_skeleton.family.pipeline.text_encoder
    layers = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, nn.Linear))
    assert tiny_skeleton.text_macs == layers * tiny_skeleton.family.text_length


def test_the_resolution_of_the_recipe_sets_the_shape_of_the_latents(tiny_pipeline_dir: Path) -> None:
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(tiny_pipeline_dir), resolution=128))
    assert skeleton.family.latent_shape == (4, 16, 16)


def copy_with(source: Path, target: Path, name: str, value: list[str]) -> TeacherSettings:
    """Copy a pipeline directory, with another component in its index."""
    shutil.copytree(source, target)
    file = target / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**index, name: value}), encoding="utf-8")
    return TeacherSettings(pipeline=str(target))


def test_a_component_with_code_of_its_own_is_refused(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    settings = copy_with(tiny_pipeline_dir, tmp_path / "own", "unet", ["my_module", "MyUNet"])
    with pytest.raises(CondistillError, match=r"unet is a my_module\.MyUNet.*is never run"):
        teacher_skeleton(settings)


def test_a_missing_config_is_reported(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    settings = copy_with(tiny_pipeline_dir, tmp_path / "part", "unet", ["diffusers", "UNet2DConditionModel"])
    shutil.rmtree(tmp_path / "part" / "unet")
    with pytest.raises(CondistillError, match="the config of the teacher's unet cannot be read"):
        teacher_skeleton(settings)


def test_the_global_random_generator_is_left_alone(tiny_pipeline_dir: Path) -> None:
    before = torch.get_rng_state()
    teacher_skeleton(TeacherSettings(pipeline=str(tiny_pipeline_dir)))
    assert torch.equal(torch.get_rng_state(), before)
