from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from condistill.config.sections import TeacherSettings
from condistill.pipelines import lineage as module
from condistill.pipelines.lineage import card_metadata, denoiser_hashes, read_lineage
from condistill.teachers.hub import HubCommit

INPUTS = {
    "teacher.family": "stable_diffusion",
    "teacher file unet/model.safetensors": "a" * 64,
    "teacher file vae/model.safetensors": "b" * 64,
    "teacher.loras[0] file pixel.safetensors": "c" * 64,
    "teacher.loras[0].scale": 0.5,
}


def _pipeline(folder: Path, **files: str) -> TeacherSettings:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return TeacherSettings(pipeline=str(folder))


def test_the_licence_of_a_folder_is_that_of_its_card(tmp_path: Path) -> None:
    card = "---\nlicense: openrail++\nbase_model: org/base\n---\n# A model\n"
    found = read_lineage(_pipeline(tmp_path, README__md=card, LICENSE__md="CreativeML Open RAIL++-M"), INPUTS)
    assert (found.licence.identifier, found.licence.source) == ("openrail++", "the teacher's README.md")
    assert found.base == "org/base"
    assert found.licence_files == {"LICENSE.md": "CreativeML Open RAIL++-M"}
    assert found.hub is None


def test_without_a_card_the_licence_file_is_recognised(tmp_path: Path) -> None:
    found = read_lineage(_pipeline(tmp_path, LICENSE="MIT License\n\nCopyright (c) 2025"), INPUTS)
    assert (found.licence.identifier, found.licence.source) == ("mit", "the teacher's LICENSE")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"README__md": "# No metadata"},
        {"README__md": "---\nlicense: [\n---\n"},
        {"README__md": "---\n- a\n---\n"},
        {"LICENSE": "Ask me."},
        {"README__md": "---\nbase_model: /home/me/base\n---\n"},
    ],
)
def test_a_licence_that_no_file_names_is_unknown(tmp_path: Path, files: dict[str, str]) -> None:
    found = read_lineage(_pipeline(tmp_path, **files), INPUTS)
    assert (found.licence.identifier, found.licence.source, found.base) == ("unknown", "", None)


def test_files_are_known_by_their_hashes_and_names_without_folders(tmp_path: Path) -> None:
    found = read_lineage(_pipeline(tmp_path), INPUTS)
    assert set(found.hashes) == {
        "unet/model.safetensors",
        "vae/model.safetensors",
        "pixel.safetensors (teacher.loras[0])",
    }
    assert denoiser_hashes(found, "StableDiffusionPipeline") == {"unet/model.safetensors": "a" * 64}


def test_one_file_has_the_licence_of_its_header(tmp_path: Path) -> None:
    for text, identifier in (("CreativeML Open RAIL-M", "creativeml-openrail-m"), ("mine\x1b", r"mine\x1b")):
        save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"modelspec.license": text})
        found = read_lineage(
            TeacherSettings(pipeline=str(tmp_path / "a.safetensors")), {"teacher file a.safetensors": "d"}
        )
        assert found.licence.identifier == identifier
    assert denoiser_hashes(found, "StableDiffusionPipeline") == {"a.safetensors": "d"}
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert read_lineage(TeacherSettings(pipeline=str(tmp_path / "a.safetensors")), {}).licence.source == ""


def test_a_hub_name_has_its_commit_and_a_link_to_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = HubCommit("f" * 40, is_reachable=True)
    card = "---\nlicense: other\nlicense_name: stabilityai-ai-community\nlicense_link: LICENSE.md\n---\n"
    _pipeline(tmp_path, README__md=card, LICENSE__md="Terms")
    read: list[str] = []

    def cached(name: str, filename: str, commit: HubCommit) -> Path:
        read.append(filename)
        return tmp_path / filename

    known: dict[str, Any] = {
        "hub_commit": lambda *_: commit,
        "repository_files": lambda *_: ("README.md", "LICENSE.md", "unet/LICENSE", "model_index.json"),
        "cached_file": cached,
    }
    for name, replacement in known.items():
        monkeypatch.setattr(module, name, replacement)
    found = read_lineage(TeacherSettings(pipeline="org/model"), {"teacher.revision": "f" * 40})
    assert (found.hub, found.commit) == ("org/model", "f" * 40)
    assert found.licence.url == f"https://huggingface.co/org/model/blob/{'f' * 40}/LICENSE.md"
    assert found.licence.known is not None
    assert found.licence_files == {"LICENSE.md": "Terms"}
    assert set(read) == {"README.md", "LICENSE.md"}


def test_the_miniature_has_the_licence_of_condistill() -> None:
    found = read_lineage(TeacherSettings(pipeline="miniature"), INPUTS)
    assert found.licence.identifier == "apache-2.0"
    assert found.is_miniature


@pytest.mark.parametrize("card", ["", "---\n", "---\na: 1\n", "text\n---\na: 1\n---\n", "---\n{\n---\n"])
def test_cards_without_metadata_have_none(card: str) -> None:
    assert card_metadata(card) == {}


def test_metadata_are_read_with_either_line_ending() -> None:
    assert card_metadata("\ufeff---\r\nlicense: mit\r\n---\r\n# x") == {"license": "mit"}
