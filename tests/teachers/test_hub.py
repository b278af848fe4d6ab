from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.hub import hub_commit, repository_files
from condistill.teachers.load import load_teacher, read_index, teacher_inputs
from condistill.teachers.prepare import prepare_teacher, prepared_settings
from condistill.teachers.skeleton import teacher_skeleton

COMMIT = "a" * 40
NAME = "artist/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub that answers with `commit`, or raises `error`; the local cache is empty."""
    answer: dict[str, Any] = {"commit": COMMIT, "error": None, "cache": tmp_path / "cache", "files": []}

    def model_info(_self: object, _name: str, **_options: Any) -> SimpleNamespace:
        if answer["error"] is not None:
            raise answer["error"]
        return SimpleNamespace(sha=answer["commit"], siblings=[SimpleNamespace(rfilename=f) for f in answer["files"]])

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(answer["cache"]))
    hub_commit.cache_clear()
    repository_files.cache_clear()
    yield answer
    hub_commit.cache_clear()
    repository_files.cache_clear()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every repository of the hub is a Stable Diffusion pipeline."""
    from diffusers import DiffusionPipeline

    unet = ["diffusers", "UNet2DConditionModel"]
    index = {"_class_name": "StableDiffusionPipeline", "unet": unet, "vae": ["diffusers", "AutoencoderKL"]}
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda *_, **__: index)


def cached(hub: dict[str, Any], pipeline: Path, commit: str = COMMIT) -> None:
    """Put a pipeline into the local cache as the hub's main branch."""
    folder = hub["cache"] / "models--artist--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / commit).symlink_to(pipeline)


def test_the_inputs_of_a_hub_teacher_name_its_commit(hub: dict[str, Any], index: None) -> None:
    settings = TeacherSettings(pipeline=NAME)
    before = teacher_inputs(settings, "cpu")
    assert before["teacher.revision"] == COMMIT
    hub["commit"] = "b" * 40
    hub_commit.cache_clear()
    assert teacher_inputs(settings, "cpu") != before
    assert teacher_inputs(TeacherSettings(pipeline=NAME, revision=COMMIT), "cpu") == before


@pytest.mark.usefixtures("index")
def test_a_hub_that_cannot_be_reached_is_named_at_once(hub: dict[str, Any]) -> None:
    hub["error"] = ConnectionError("[Errno -2] Name or service not known")
    started = time.monotonic()
    with pytest.raises(CondistillError, match=r"the hub cannot be reached \(\[Errno -2\] Name.*check the name or the"):
        teacher_inputs(TeacherSettings(pipeline=NAME), "cpu")
    assert time.monotonic() - started < 2


def test_a_downloaded_teacher_is_used_without_network(hub: dict[str, Any], tiny_pipeline_dir: Path) -> None:
    hub["error"] = ConnectionError("no network")
    cached(hub, tiny_pipeline_dir)
    settings = TeacherSettings(pipeline=NAME)
    assert teacher_inputs(settings, "cpu")["teacher.revision"] == COMMIT
    assert teacher_skeleton(settings).family.name == load_teacher(settings).name == "stable_diffusion"


@pytest.mark.parametrize("name", ["a//b", "a/b c", "-/-"])
def test_a_name_that_cannot_be_on_the_hub_is_refused(hub: dict[str, Any], name: str) -> None:
    from huggingface_hub.errors import HFValidationError

    hub["error"] = HFValidationError("no repo id")
    with pytest.raises(CondistillError, match=r"teacher.pipeline .* (is neither a directory nor|does not exist)"):
        load_teacher(TeacherSettings(pipeline=name))


WEIGHTS = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        ([f"unet/{WEIGHTS}.safetensors", f"unet/{WEIGHTS}.fp16.safetensors"], None),
        ([f"unet/{WEIGHTS}.fp16.safetensors", f"vae/{WEIGHTS}.safetensors"], "fp16"),
        ([f"unet/{WEIGHTS}.fp16-00001-of-00015.safetensors", f"vae/{WEIGHTS}.fp16.safetensors"], "fp16"),
        ([f"onnx/{WEIGHTS}.fp16.safetensors", "model.fp16.safetensors", "unet/model.onnx"], None),
    ],
)
@pytest.mark.usefixtures("index")
def test_the_only_variant_of_a_repository_is_found_from_the_names_of_its_files(
    hub: dict[str, Any], files: list[str], variant: str | None
) -> None:
    hub["files"] = files
    assert teacher_inputs(TeacherSettings(pipeline=NAME), "cpu")["teacher.variant"] == variant


@pytest.mark.usefixtures("index")
def test_a_variant_that_a_repository_has_not_is_refused_before_anything_is_downloaded(hub: dict[str, Any]) -> None:
    hub["files"] = [f"unet/{WEIGHTS}.fp16.safetensors", f"unet/{WEIGHTS}.safetensors"]
    with pytest.raises(
        CondistillError, match=r"no component of artist/tiny has files of it; there are files of 'fp16' "
    ):
        read_index(TeacherSettings(pipeline=NAME, variant="bf16"))
    hub["files"] = [f"unet/{WEIGHTS}.bin"]
    repository_files.cache_clear()
    with pytest.raises(CondistillError, match="the teacher at artist/tiny has only pickle weights for unet"):
        read_index(TeacherSettings(pipeline=NAME))


def test_a_downloaded_variant_is_used_without_network(
    hub: dict[str, Any], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    hub["error"] = ConnectionError("no network")
    copied = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    for file in [*copied.rglob("*.safetensors")]:
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    cached(hub, copied)
    assert teacher_inputs(TeacherSettings(pipeline=NAME), "cpu")["teacher.variant"] == "fp16"
    assert load_teacher(TeacherSettings(pipeline=NAME)).latent_shape == (4, 8, 8)
    with pytest.raises(CondistillError, match=r"there are files of 'fp16'; set it to fp16, or leave it out"):
        load_teacher(TeacherSettings(pipeline=NAME, variant="bf16"))


def test_a_downloaded_teacher_with_another_scheduler_is_made_without_network(
    hub: dict[str, Any], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    from diffusers import EulerDiscreteScheduler

    hub["error"] = ConnectionError("no network")
    cached(hub, tiny_pipeline_dir)
    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "euler")
    settings = TeacherSettings(pipeline=NAME, scheduler=str(tmp_path / "euler"))
    prepare_teacher(settings, tmp_path / "out")
    made = load_teacher(prepared_settings(settings, tmp_path / "out"))
    assert type(made.pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert teacher_inputs(settings, "cpu").keys() >= {
        "teacher.revision",
        "teacher.scheduler file scheduler_config.json",
    }
