from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from full_size import DATA, SIZES
from torch import nn

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher
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


def edit(directory: Path, component: str, file: str, **changes: Any) -> Path:
    """Change a config of a pipeline, and return the pipeline's directory."""
    path = directory / component / file
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return directory


LOADERS = (teacher_skeleton, pytest.param(load_teacher, marks=pytest.mark.slow))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("class_name", ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline"])
def test_a_teacher_without_a_size_asks_for_the_resolution(
    load: Any, class_name: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    pipeline = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    edit(edit(pipeline, "unet", "config.json", sample_size=None), "", "model_index.json", _class_name=class_name)
    with pytest.raises(
        CondistillError, match=r"unet/config\.json has sample_size: null, .*; set teacher\.resolution to"
    ):
        load(TeacherSettings(pipeline=str(pipeline)))
    settings = TeacherSettings(pipeline=str(pipeline), resolution=32)
    if class_name == "StableDiffusionPipeline":
        loaded = load(settings)
        assert getattr(loaded, "family", loaded).latent_shape == (4, 4, 4)
    else:
        with pytest.raises(CondistillError, match=r"diffusers cannot load a StableDiffusionInpaintPipeline; write the"):
            load(settings)


@pytest.mark.parametrize("load", LOADERS)
def test_a_teacher_that_would_divide_by_zero_is_refused_by_the_name_of_the_setting(
    load: Any, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    pipeline = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    edit(pipeline, "scheduler", "scheduler_config.json", rescale_betas_zero_snr=True)
    with pytest.raises(CondistillError, match=r"leaves no signal at its last timestep \(rescale_betas_zero_snr in "):
        load(TeacherSettings(pipeline=str(pipeline)))
    with pytest.raises(CondistillError, match=r"set rescale_betas_zero_snr to false, or give a teacher that predicts"):
        load(TeacherSettings(pipeline=str(tiny_pipeline_dir), scheduler=str(pipeline)))
    edit(pipeline, "scheduler", "scheduler_config.json", prediction_type="v_prediction")
    load(TeacherSettings(pipeline=str(pipeline)))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler"])
def test_consistency_models_of_either_kind_are_sampled_and_do_not_teach(
    load: Any, kind: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    scheduler = getattr(diffusers, kind)(beta_schedule="scaled_linear")
    scheduler.save_pretrained(tmp_path / "scheduler")
    pipeline = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    edit(pipeline, "", "model_index.json", scheduler=["diffusers", kind])
    shutil.copy(tmp_path / "scheduler" / "scheduler_config.json", pipeline / "scheduler")
    replaced = TeacherSettings(pipeline=str(tiny_pipeline_dir), scheduler=str(tmp_path / "scheduler"))
    for settings in (TeacherSettings(pipeline=str(pipeline)), replaced):
        with pytest.raises(
            CondistillError, match=rf"is {kind}: a consistency model .* scheduler as teacher\.scheduler"
        ):
            load(settings)
        loaded = load(settings, only_sampled=True)
        sampling = getattr(loaded, "family", loaded).default_sampling()
        assert (sampling.num_inference_steps, sampling.guidance_scale) == (4, 1.0)
    original = TeacherSettings(pipeline=str(pipeline), scheduler=str(tiny_pipeline_dir))
    load(original)
