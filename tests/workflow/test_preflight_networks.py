"""Networks and reference images of the evaluation are checked before anything is loaded, generated or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_networks import FakeNetwork, fake_networks
from PIL import Image
from rich.console import Console
from runs import tiny_recipe

from condistill import cli
from condistill.errors import CondistillError
from condistill.evaluate.networks.network import LocatedNetwork
from condistill.run.directory import RunMark
from condistill.teachers.skeleton import teacher_skeleton
from condistill.workflow.compress import compress
from condistill.workflow.preflight import check_inputs, examine, preflight


def _reference(folder: Path, size: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(2):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_a_run_refuses_missing_networks_all_at_once_and_writes_nothing(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    missing = ["evaluate.networks.clip=none/clip/x", "evaluate.networks.dinov2=/none", "evaluate.reference=/none"]
    recipe = tiny_recipe(tmp_path, tiny_pipeline_dir, *missing)
    reason = (
        r"3 files of the section evaluate cannot be used:\n.*dinov2: /none .*1\.13 GiB\n.*clip: .*\n.*reference: /none"
    )
    with pytest.raises(CondistillError, match=reason):
        compress(recipe, tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_validate_and_plan_say_what_a_run_will_download(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate(source: str, *, download: bool) -> LocatedNetwork:
        assert not download
        return LocatedNetwork("dinov2", source, "none", (), download_bytes=3 << 30)

    monkeypatch.setattr(FakeNetwork, "locate", locate)
    recipe = tiny_recipe(tmp_path, tiny_pipeline_dir, "evaluate.networks.dinov2=someone/dinov2")
    with fake_networks():
        check_inputs(recipe)
        warnings = examine(recipe, teacher_skeleton(recipe.teacher)).warnings
    assert "evaluate.networks.dinov2: the run will download 3.00 GiB of someone/dinov2" in warnings


@pytest.mark.slow
def test_reference_images_of_another_size_than_the_teachers_are_refused_before_training(
    tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "seed").write_text("1")
    folder = _reference(tmp_path / "images", 7)
    files = [f"evaluate.networks.dinov2={tmp_path / 'seed'}", f"evaluate.reference={folder}"]
    with fake_networks():
        recipe = tiny_recipe(tmp_path, tiny_pipeline_dir, *files)
        skeleton = teacher_skeleton(recipe.teacher)
        height, width = skeleton.family.image_size
        with pytest.raises(CondistillError, match=rf"have 7x7 pixels and generated ones {width}x{height}, .*resize"):
            preflight(recipe, skeleton)
        preflight(tiny_recipe(tmp_path, tiny_pipeline_dir, *files, "evaluate.resize=7"), skeleton)


@pytest.mark.parametrize("setting", ["evaluate.networks.dinov2", "evaluate.reference", "evaluate.prompt_files"])
def test_files_in_a_folder_that_the_run_would_move_are_refused(
    setting: str, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    path = _reference(tmp_path / "run" / "evaluation" / "mine", 7)
    RunMark(program="condistill", version="0").write(tmp_path / "run" / "run.json")
    value = f"[{path / '0.png'}]" if setting.endswith("files") else path
    recipe = tiny_recipe(tmp_path, tiny_pipeline_dir, f"{setting}={value}")
    with pytest.raises(
        CondistillError, match=rf"{setting}: .* lies in .*, which this run writes; choose another --out"
    ):
        compress(recipe, tmp_path / "run", update=True, console=Console(quiet=True))


def test_the_command_shows_every_missing_file_on_a_line(
    tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe: Any = tiny_recipe(tmp_path, tiny_pipeline_dir)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    missing = ["-s", "evaluate.networks.dinov2=./none", "-s", "evaluate.networks.pickscore=./gone"]
    with pytest.raises(SystemExit):
        cli.main(["validate", "recipe.yaml", *missing])
    heading, *lines = capsys.readouterr().err.splitlines()
    assert heading == "error: 2 files of the section evaluate cannot be used:"
    assert lines[0].startswith(f"  evaluate.networks.dinov2: {tmp_path}/none does not exist; give")
    assert lines[1].startswith("  evaluate.networks.pickscore: ")
