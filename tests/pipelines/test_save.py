from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from condistill.pipelines.save import save_pipeline
from condistill.teachers.family import Family

Saved = tuple[Path, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def saved(tiny_family: Family, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A saved pipeline with another denoiser than the teacher's, and the weights of that denoiser."""
    student = copy.deepcopy(tiny_family.denoiser).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    directory = tmp_path_factory.mktemp("saved") / "pipeline"
    save_pipeline(tiny_family, student, directory, card="# A card\n")
    return directory, weights


def test_a_saved_pipeline_loads_with_plain_diffusers_bit_for_bit(saved: Saved, tiny_family: Family) -> None:
    directory, weights = saved
    pipeline = DiffusionPipeline.from_pretrained(directory, use_safetensors=True)
    assert type(pipeline) is StableDiffusionPipeline
    loaded = pipeline.unet.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    for name in ("vae", "text_encoder"):
        teacher = getattr(tiny_family.pipeline, name).state_dict()
        assert all(torch.equal(getattr(pipeline, name).state_dict()[k], tensor) for k, tensor in teacher.items())
    assert (directory / "README.md").read_text() == "# A card\n"


def test_a_saved_pipeline_does_not_name_directories_of_this_machine(saved: Saved, tiny_pipeline_dir: Path) -> None:
    files = list(saved[0].rglob("*.json"))
    assert len(files) > 4
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "_name_or_path" not in json.loads(text), file
        assert str(tiny_pipeline_dir) not in text, file
        assert str(saved[0]) not in text, file


def test_a_saved_pipeline_holds_no_pickle(saved: Saved) -> None:
    suffixes = {file.suffix for file in saved[0].rglob("*") if file.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".txt", ".md"}


def test_a_save_that_fails_leaves_the_old_pipeline(
    saved: Saved, tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(saved[0], directory)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tiny_family.pipeline.text_encoder, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pipeline(tiny_family, tiny_family.denoiser, directory, card="new")
    assert (directory / "README.md").read_text() == "# A card\n"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
