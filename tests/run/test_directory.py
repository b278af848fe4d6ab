from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.run.directory import RunDir, StageDir
from condistill.utils.hashing import hash_file, key_of

BASE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-base}\n"


def recipe(*overrides: str) -> Recipe:
    return Recipe.parse(BASE, overrides)


def test_the_key_does_not_depend_on_the_order_of_settings() -> None:
    assert key_of({"a": 1, "b": (2, 3)}, Path("x")) == key_of({"b": [2, 3], "a": 1}, Path("x"))
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of("a", "b") != key_of("ab")


def test_hash_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_run_directory_contains_the_resolved_recipe_and_can_be_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    RunDir.open(path, recipe("distill.steps=7"))
    assert Recipe.load(path / "recipe.yaml") == recipe("distill.steps=7")
    RunDir.open(path, recipe("distill.steps=7"))


def test_another_recipe_is_refused_without_update_and_the_error_names_the_difference(tmp_path: Path) -> None:
    RunDir.open(tmp_path / "run", recipe())
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    other = recipe("distill.steps=7", "seed=3", "variants.plain.distill.optimizer.learning_rate=0.1")
    with pytest.raises(
        CondistillError, match=r"another recipe \(it differs in distill.steps, seed, variants.*--update"
    ):
        RunDir.open(tmp_path / "run", other)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before
    RunDir.open(tmp_path / "run", other, update=True)
    RunDir.open(tmp_path / "run", other)


def test_a_folder_that_is_not_a_run_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(CondistillError, match="holds no run of condistill; choose another --out"):
            RunDir.open(path, recipe(), update=True)
    with pytest.raises(CondistillError, match=r"cannot be made .*choose another --out"):
        RunDir.open(tmp_path / "thesis.tex" / "run", recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_with_a_recipe_of_the_user_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml(), encoding="utf-8")
    for update in (False, True):
        with pytest.raises(CondistillError, match="holds no run of condistill; choose another --out"):
            RunDir.open(tmp_path, recipe(), update=update)
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == recipe().to_yaml()


def test_a_stage_without_one_of_its_files_is_not_done(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "cache", "one")
    (stage.begin() / "pool").touch()
    stage.finish()
    assert stage.is_done("pool")
    assert not stage.is_done("pool", "other")


def test_an_empty_folder_can_become_a_run_directory(tmp_path: Path) -> None:
    assert RunDir.open(tmp_path, recipe()).stage("cache", "k").path == tmp_path / "cache"


def test_a_stage_is_done_only_when_finished_with_the_same_key(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "cache", "one")
    assert not stage.is_done()
    assert stage.begin() == tmp_path / "cache"
    assert not stage.is_done()
    stage.finish()
    assert stage.is_done()
    assert StageDir(tmp_path / "cache", "one").is_done()
    assert not StageDir(tmp_path / "cache", "two").is_done()


def test_another_key_empties_the_stage(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "cache", "one")
    (stage.begin() / "shard").touch()
    stage.finish()
    other = StageDir(tmp_path / "cache", "two")
    assert [path.name for path in other.begin().iterdir()] == ["stage.json"]
    assert not stage.is_done()


def test_files_without_a_key_are_deleted_when_a_stage_begins(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shard").touch()
    assert not (StageDir(tmp_path / "cache", "one").begin() / "shard").exists()


def test_an_interrupted_stage_keeps_its_files(tmp_path: Path) -> None:
    (StageDir(tmp_path / "cache", "one").begin() / "shard").touch()
    assert (StageDir(tmp_path / "cache", "one").begin() / "shard").exists()


@pytest.mark.parametrize("update", [False, True])
def test_a_run_directory_of_version_0_1_is_refused_in_one_line_and_stays_as_it_is(
    tmp_path: Path, *, update: bool
) -> None:
    text = "# The resolved recipe of a run of condistill: every setting, defaults included.\nseed: 0\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CondistillError, match=r"^.* holds a run of condistill 0\.1, .*; choose another --out$"):
        RunDir.open(tmp_path, recipe(), update=update)
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == text
