from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from diffusers import EulerDiscreteScheduler
from rich.console import Console
from runs import tiny_recipe

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.run.context import Run, RunProtocol
from condistill.utils import hashing

BASE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-base}\n"


def test_a_launcher_that_splits_models_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run = Run(Recipe.parse(BASE), tmp_path / "run", console=Console(quiet=True))
    with pytest.raises(CondistillError, match="FSDP"):
        run.open_directory()
    assert not run.path.exists()


def test_the_files_of_a_teacher_and_the_links_to_them_are_read_once(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, read = shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher"), list[Path]()
    for file in teacher.rglob("*"):
        os.utime(file, (1, 1))
    EulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    recipe = tiny_recipe(tmp_path, teacher, f"teacher.scheduler={tmp_path / 'scheduler'}")
    hash_file = hashing.hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda path, *args: (read.append(path), hash_file(path, *args))[1])
    for _ in range(2):
        with Run(recipe, tmp_path / "run", console=Console(quiet=True)) as run:
            run.claim_directory()
            run.describe_teacher()
            run.open_directory()
            time.sleep(0.02)  # longer than a tick of the clock of files
            run.prepare_teacher()
            assert run.teacher.pipeline == str(tmp_path / "run" / "teacher")
    weights = [path for path in read if path.suffix == ".safetensors"]
    assert len(weights) == len({path.parent.name for path in weights}) > 0


def test_runs_of_one_process_may_differ_in_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    for precision in ("no", "bf16", "no"):
        recipe = Recipe.parse(BASE, [f"distill.mixed_precision='{precision}'"])
        with Run(recipe, tmp_path / "run", console=Console(quiet=True)) as run:
            assert run.accelerator.mixed_precision == precision


def test_an_evaluation_by_a_protocol_has_its_own_folder_and_leaves_the_recipe(tmp_path: Path) -> None:
    base, of_protocol = Recipe.parse(BASE), Recipe.parse(BASE, ["evaluate.resize=256"])
    protocol = RunProtocol("coco-30k", base)
    with Run(of_protocol, tmp_path / "run", console=Console(quiet=True), protocol=protocol) as run:
        run.open_directory()
        assert run.stage("cache", dict).path == run.path / "cache"
        assert run.stage("evaluation/latents/a", dict).path == run.path / "evaluations" / "coco-30k" / "latents" / "a"
        assert run.results == run.path / "evaluations" / "coco-30k"
    assert Recipe.load(run.path / "recipe.yaml") == base
    assert Run(base, tmp_path / "run", console=Console(quiet=True)).results == tmp_path / "run"
