from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers import source
from condistill.teachers.source import teacher_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `some/teacher` in a local cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    index = json.loads((tiny_pipeline_dir / "model_index.json").read_text())

    def read_index(settings: TeacherSettings) -> tuple[str, dict[str, Any]]:
        return settings.pipeline, index

    monkeypatch.setattr(source, "read_index", read_index)
    repository = tmp_path / "models--some--teacher"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(tiny_pipeline_dir, repository / "snapshots" / COMMIT))


def test_the_files_of_a_local_teacher_are_its_own(tiny_pipeline_dir: Path) -> None:
    files = teacher_files(TeacherSettings(pipeline=str(tiny_pipeline_dir)))
    assert files.directory == tiny_pipeline_dir
    assert files.weight_bytes("unet") == sum(f.stat().st_size for f in (tiny_pipeline_dir / "unet").glob("*.safe*"))
    assert files.total_bytes() == sum(file.stat().st_size for file in tiny_pipeline_dir.rglob("*") if file.is_file())
    assert {files.dtype(name) for name in ("unet", "vae", "text_encoder")} == {"float32"}


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_the_files_of_a_hub_teacher_are_those_of_its_snapshot(revision: str | None, hub: Path) -> None:
    files = teacher_files(TeacherSettings(pipeline="some/teacher", revision=revision))
    assert files.directory == hub
    assert files.weights("unet")


def test_a_hub_teacher_that_is_not_in_the_cache_is_named(hub: Path) -> None:
    with pytest.raises(CondistillError, match=r"files of the teacher other/teacher are not in the local cache"):
        teacher_files(TeacherSettings(pipeline="other/teacher", revision=COMMIT))
