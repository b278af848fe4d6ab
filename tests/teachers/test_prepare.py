from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionPipeline
from loras import attention_layers, matrices, peft_names, write_lora
from single_file import vae_tensors, write_file

from condistill.config.sections import LoraSettings, TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.load import load_teacher, teacher_inputs
from condistill.teachers.prepare import prepare_teacher, prepared_settings
from condistill.teachers.skeleton import teacher_skeleton


@pytest.fixture(scope="module")
def lora(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny U-Net. Read only."""
    unet = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True).unet
    layers = matrices(unet, attention_layers(unet))
    return write_lora(tmp_path_factory.mktemp("lora") / "style.safetensors", peft_names("unet", layers))


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of another scheduler. Read only."""
    folder = tmp_path_factory.mktemp("scheduler")
    EulerDiscreteScheduler(beta_start=0.001, beta_end=0.02, timestep_spacing="trailing").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of another autoencoder, in float16. Read only."""
    folder = tmp_path_factory.mktemp("vae")
    model = AutoencoderKL.from_pretrained(tiny_pipeline_dir, subfolder="vae")
    with torch.no_grad():
        model.decoder.conv_out.bias += 0.5
    model.half().save_pretrained(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def made(settings: TeacherSettings, folder: Path) -> Path:
    prepare_teacher(settings, folder)
    return folder


def test_the_directory_is_one_that_diffusers_loads_with_everything_that_was_changed(
    lora: Path, scheduler: Path, vae: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    settings = TeacherSettings(
        pipeline=str(tiny_pipeline_dir),
        loras=(LoraSettings(path=str(lora), scale=0.5),),
        vae=str(vae),
        scheduler=str(scheduler),
    )
    out = made(settings, tmp_path / "out")
    assert files(out) == files(tiny_pipeline_dir)
    pipeline = DiffusionPipeline.from_pretrained(out, use_safetensors=True)
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert pipeline.scheduler.config.beta_end == 0.02
    original = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)
    assert not pipeline.unet.state_dict()["conv_in.weight"].isnan().any()
    name = f"{attention_layers(original.unet)[0]}.weight"
    assert not pipeline.unet.state_dict()[name].equal(original.unet.state_dict()[name])
    shift = pipeline.vae.decoder.conv_out.bias - original.vae.decoder.conv_out.bias
    torch.testing.assert_close(shift, torch.full_like(shift, 0.5), atol=1e-3, rtol=0)
    skeleton = teacher_skeleton(settings).family
    assert type(skeleton.pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    loaded = load_teacher(settings)
    assert loaded.denoiser.state_dict()[name].equal(pipeline.unet.state_dict()[name])
    assert loaded.origin.names == ("pipeline", "style")
    assert prepared_settings(settings, out) == TeacherSettings(pipeline=str(out))


def test_components_that_do_not_change_are_links_to_the_files_of_the_teacher(
    lora: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    out = made(TeacherSettings(pipeline=str(copied), loras=(LoraSettings(path=str(lora)),)), tmp_path / "out")
    linked = {name for name in files(out) if (out / name).samefile(copied / name)}
    assert linked == {name for name in files(copied) if not name.startswith(("unet/", "model_index.json"))}


@pytest.mark.slow
def test_a_directory_is_made_again_over_an_unfinished_one_without_a_change_of_the_teacher(
    lora: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    before = {name: (copied / name).read_bytes() for name in files(copied)}
    plain = TeacherSettings(pipeline=str(copied), scheduler=str(copied))
    out = made(plain, tmp_path / "out")  # every weight is a link
    (out / "stage.json").write_text("mine")
    made(TeacherSettings(pipeline=str(copied), loras=(LoraSettings(path=str(lora)),)), out)
    assert {name: (copied / name).read_bytes() for name in files(copied)} == before
    assert (out / "stage.json").read_text() == "mine"
    assert not (out / "unet/diffusion_pytorch_model.safetensors").samefile(
        copied / "unet/diffusion_pytorch_model.safetensors"
    )


@pytest.mark.slow
@pytest.mark.parametrize("shard_size", ["1GB", "200KB"])
def test_files_of_a_variant_are_found_without_it(
    shard_size: str, scheduler: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    original = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, torch_dtype=torch.float16)
    original.save_pretrained(tmp_path / "fp16", variant="fp16", max_shard_size=shard_size)
    out = made(TeacherSettings(pipeline=str(tmp_path / "fp16"), scheduler=str(scheduler)), tmp_path / "out")
    assert not any("fp16" in name for name in files(out))
    loaded = StableDiffusionPipeline.from_pretrained(out, use_safetensors=True, torch_dtype=torch.float16)
    weights = original.unet.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.unet.state_dict().items())


@pytest.mark.slow
def test_weights_keep_the_dtype_of_their_files(lora: Path, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    half = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, torch_dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    settings = TeacherSettings(pipeline=str(tmp_path / "half"), loras=(LoraSettings(path=str(lora)),))
    out = made(settings, tmp_path / "out")
    size = (tmp_path / "half/unet/diffusion_pytorch_model.safetensors").stat().st_size
    assert abs((out / "unet/diffusion_pytorch_model.safetensors").stat().st_size - size) < 1000


@pytest.mark.slow
def test_an_autoencoder_in_one_file_replaces_that_of_the_pipeline(
    vae: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    model = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32)
    file = write_file(vae_tensors(model), tmp_path / "vae.safetensors")
    settings = TeacherSettings(pipeline=str(tiny_pipeline_dir), vae=str(file))
    assert teacher_skeleton(settings).family.image_size == (64, 64)
    loaded = load_teacher(settings).pipeline.vae.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


def test_an_autoencoder_of_a_variant_only_replaces_that_of_the_pipeline(
    vae: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    model = AutoencoderKL.from_pretrained(vae)
    model.save_pretrained(tmp_path / "vae", variant="fp16", max_shard_size="200KB")
    out = made(TeacherSettings(pipeline=str(tiny_pipeline_dir), vae=str(tmp_path / "vae")), tmp_path / "out")
    assert not list(out.rglob("*fp16*"))
    loaded = AutoencoderKL.from_pretrained(out, subfolder="vae").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


def inputs(pipeline: Path, **settings: Any) -> dict[str, Any]:
    return teacher_inputs(TeacherSettings(pipeline=str(pipeline), **settings), "cpu")


def test_the_inputs_name_every_original_file_by_its_content(
    lora: Path, scheduler: Path, vae: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    loras = (LoraSettings(path=str(lora), scale=0.5),)
    plain = inputs(tiny_pipeline_dir)
    found = inputs(tiny_pipeline_dir, loras=loras, vae=str(vae), scheduler=str(scheduler))
    assert plain.items() <= found.items()
    assert found.keys() - plain.keys() == {
        "teacher.loras[0] file style.safetensors",
        "teacher.loras[0].scale",
        "teacher.vae file config.json",
        "teacher.vae file diffusion_pytorch_model.safetensors",
        "teacher.scheduler file scheduler_config.json",
    }
    moved = Path(shutil.copytree(scheduler, tmp_path / "elsewhere")) / "scheduler_config.json"
    assert inputs(tiny_pipeline_dir, loras=loras, vae=str(vae), scheduler=str(moved)) == found
    moved.write_text(moved.read_text() + " ")
    assert inputs(tiny_pipeline_dir, loras=loras, vae=str(vae), scheduler=str(moved)) != found
    other = (LoraSettings(path=str(lora), scale=0.4),)
    assert inputs(tiny_pipeline_dir, loras=other, vae=str(vae), scheduler=str(scheduler)) != found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no scheduler_config.json, and no directory with one"),
        ("", "scheduler_config.json cannot be read"),
        ("[]", "scheduler_config.json holds no settings"),
        ("{}", "names None, which is no scheduler of diffusers"),
        ('{"_class_name": "UNet2DModel"}', "names 'UNet2DModel', which is no scheduler of diffusers"),
        ('{"_class_name": "DDIMScheduler", "num_train_timesteps": "x"}', "cannot be used: num_train_timesteps is 'x'"),
        ('{"_class_name": "FlowMatchEulerDiscreteScheduler"}', "which has no betas over whole timesteps"),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_refused_before_weights_are_loaded(
    content: str | None, message: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "scheduler_config.json").write_text(content)
    with pytest.raises(CondistillError, match=message):
        teacher_skeleton(TeacherSettings(pipeline=str(tiny_pipeline_dir), scheduler=str(tmp_path)))


def test_an_autoencoder_that_cannot_be_used_is_refused_before_weights_are_loaded(
    vae: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(CondistillError, match=message):
            teacher_skeleton(TeacherSettings(pipeline=str(tiny_pipeline_dir), vae=str(path)))

    refused(tmp_path / "gone", r"teacher\.vae .*gone is no directory with config\.json and weights")
    (tmp_path / "vae.pt").write_bytes(b"x")
    refused(tmp_path / "vae.pt", r"vae\.pt: only safetensors are loaded")
    copied = Path(shutil.copytree(vae, tmp_path / "vae"))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    refused(copied, "names 'UNet2DModel', which is no autoencoder of diffusers")
    (copied / "diffusion_pytorch_model.safetensors").unlink()
    refused(copied, "has no weights in safetensors")
    model = AutoencoderKL.from_pretrained(vae)
    tensors = vae_tensors(model)
    tensors["first_stage_model.encoder.conv_in.weight"] = torch.ones(3, 3, 3, 3)
    refused(write_file(tensors, tmp_path / "a.safetensors"), r"do not fit: encoder\.conv_in\.weight is \[3, 3, 3, 3\]")
    refused(write_file({"unet.x": torch.ones(1)}, tmp_path / "b.safetensors"), "b.safetensors has no autoencoder")
