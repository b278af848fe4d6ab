from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.hub import hub_commit
from condistill.teachers.load import load_teacher, teacher_inputs
from condistill.teachers.skeleton import teacher_skeleton

COMMIT = "a" * 40
NAME = "artist/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub that answers with `commit`, or raises `error`; the local cache is empty."""
    answer: dict[str, Any] = {"commit": COMMIT, "error": None, "cache": tmp_path / "cache"}

    def model_info(_self: object, _name: str, **_options: Any) -> SimpleNamespace:
        if answer["error"] is not None:
            raise answer["error"]
        return SimpleNamespace(sha=answer["commit"])

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(answer["cache"]))
    hub_commit.cache_clear()
    yield answer
    hub_commit.cache_clear()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every repository of the hub is a Stable Diffusion pipeline."""
    from diffusers import DiffusionPipeline

    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda *_, **__: {"_class_name": "StableDiffusionPipeline"})


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
