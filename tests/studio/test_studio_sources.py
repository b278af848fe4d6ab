from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from runs import tiny_recipe

from condistill.errors import CondistillError
from condistill.studio.sources import find_sources


@pytest.fixture
def run(tmp_path: Path, tiny_pipeline_dir: Path) -> Path:
    """A run directory whose first student is finished; its weights are the teacher's."""
    recipe = tiny_recipe(tmp_path, tiny_pipeline_dir)
    path = tmp_path / "run"
    shutil.copytree(tiny_pipeline_dir, path / "pipelines" / "plain")
    (path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (path / "run.json").write_text(json.dumps({"program": "condistill", "version": "0"}), encoding="utf-8")
    return path


def test_a_run_has_its_teacher_and_its_finished_students(run: Path, tiny_pipeline_dir: Path) -> None:
    sources = find_sources([str(run)])
    assert [model.name for model in sources.models] == ["teacher", "plain"]
    assert sources.models[0].settings.pipeline == str(tiny_pipeline_dir)
    assert [(model.steps, model.guidance) for model in sources.models] == [(2, 3.0), (2, 3.0)]
    assert sources.runs == (run,)
    assert sources.of_run(run) == sources.models
    (note,) = sources.notes
    assert note == f"the student random_conditioning of {run} is not finished, so no image can be generated with it yet"


def test_the_students_of_a_teacher_that_is_gone_are_shown(run: Path) -> None:
    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    moved = text.replace("pipeline: ", "pipeline: /gone", 1)
    (run / "recipe.yaml").write_text(moved, encoding="utf-8")
    sources = find_sources([str(run)])
    assert [model.name for model in sources.models] == ["plain"]
    assert sources.notes[0].startswith(f"the teacher of {run} is not shown: teacher.pipeline /gone")


def test_a_pipeline_that_belongs_to_no_run_has_the_name_of_its_folder(tiny_pipeline_dir: Path) -> None:
    (model,) = find_sources([str(tiny_pipeline_dir)]).models
    assert (model.name, model.run, model.steps) == ("pipeline", None, None)


def test_models_of_one_name_are_told_apart_and_equal_ones_are_shown_once(
    run: Path, tiny_pipeline_dir: Path, tiny_v_pipeline_dir: Path
) -> None:
    other = run.parent / "other"
    shutil.copytree(run, other)
    arguments = [run, other, run, tiny_pipeline_dir, tiny_v_pipeline_dir]
    names = [model.name for model in find_sources([str(path) for path in arguments]).models]
    first, second = tiny_pipeline_dir.parent.name, tiny_v_pipeline_dir.parent.name
    assert names == ["teacher", "run/plain", "other/plain", f"{first}/pipeline", f"{second}/pipeline"]


def test_a_folder_that_is_neither_run_nor_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"neither run\.json nor model_index\.json"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize("name", ["{}/gone", "gone", "./gone/run", "a/b/c"])
def test_a_path_that_does_not_exist_is_refused(tmp_path: Path, name: str) -> None:
    given = name.format(tmp_path)
    with pytest.raises(CondistillError, match=f"{given} does not exist; give a run directory, a pipeline directory"):
        find_sources([given])
