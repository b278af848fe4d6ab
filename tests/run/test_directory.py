from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipes import BASE

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.run.directory import MARK_NAME, RunDir


def recipe(*overrides: str) -> Recipe:
    return Recipe.parse(BASE, overrides)


def run_directory(path: Path, lines: list[str] | None = None, **inputs: dict[str, Any]) -> RunDir:
    """Return a run directory whose stages, such as `cache`, have these inputs."""
    directory = RunDir(path, say=(lambda _: None) if lines is None else lines.append)
    for name, given in inputs.items():
        directory.stage(name, lambda given=given: given)
    return directory


def make(path: Path, *, update: bool = False, lines: list[str] | None = None, **inputs: dict[str, Any]) -> RunDir:
    """Open a run directory as a command does, and make the stages that are missing."""
    directory = run_directory(path, lines, **inputs)
    try:
        directory.claim()
        directory.settle_changes(update=update)
        directory.create(recipe())
        for stage in directory.stages.values():
            if not stage.is_done():
                (stage.begin() / "result").write_text(str(stage.inputs))
                stage.finish()
    finally:
        directory.close()
    return directory


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_directory_is_marked_holds_the_resolved_recipe_and_opens_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    make(path)
    assert (path / MARK_NAME).is_file()
    assert Recipe.load(path / "recipe.yaml") == recipe()
    make(path)


def test_a_folder_that_is_not_a_run_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "cache").mkdir()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(CondistillError, match="holds no run of condistill; choose another --out"):
            make(path, update=True, cache={})
    with pytest.raises(CondistillError, match=r"cannot be made .*choose another --out"):
        make(tmp_path / "thesis.tex" / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "cache"}


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("is_copy", [False, True])
def test_a_folder_with_a_recipe_is_no_run_even_if_a_run_wrote_the_recipe(
    tmp_path: Path, *, update: bool, is_copy: bool
) -> None:
    make(tmp_path / "run")
    folder = tmp_path / "mine"
    folder.mkdir()
    if is_copy:
        shutil.copy(tmp_path / "run" / "recipe.yaml", folder)
    else:
        (folder / "recipe.yaml").write_text(recipe().to_yaml(), encoding="utf-8")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "mine.txt").write_text("a red star")
    before = content(folder)
    with pytest.raises(CondistillError, match="choose another --out"):
        make(folder, update=update, prompts={})
    assert content(folder) == before


@pytest.mark.parametrize("mark", ['{"version": "3.0"}', '{"format": 1, "version": "3.0"}', '{"program": "make"}'])
def test_a_folder_with_a_mark_of_another_program_is_refused_and_left_unchanged(tmp_path: Path, mark: str) -> None:
    (tmp_path / MARK_NAME).write_text(mark)
    (tmp_path / ".notes.old").write_text("years of work")
    (tmp_path / "recipe.yaml").write_text("flour: 1 kg")
    before = content(tmp_path)
    with pytest.raises(CondistillError, match=r"run\.json is damaged .* else choose another --out"):
        make(tmp_path, update=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("leftover", [f".{MARK_NAME}.partial", ".recipe.yaml.partial"])
def test_a_run_that_was_killed_at_once_starts_again(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).write_text("{")
    make(tmp_path, cache={})
    assert (tmp_path / "cache" / "result").is_file()
    assert not (tmp_path / leftover).exists()


def test_what_a_killed_command_left_is_put_back_or_removed(tmp_path: Path) -> None:
    make(tmp_path, cache={})
    (tmp_path / "cache").rename(tmp_path / ".cache.old")  # killed between two renames
    (tmp_path / ".cache.partial").mkdir()
    make(tmp_path, cache={})
    assert {path.name for path in tmp_path.iterdir() if not path.is_file()} == {"cache"}
    (tmp_path / ".cache.old").mkdir()  # killed before the old one was removed
    make(tmp_path, cache={})
    assert not (tmp_path / ".cache.old").exists()


@pytest.mark.parametrize("content", ["", "{", '{"format": 9}'])
def test_a_damaged_mark_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    make(tmp_path)
    (tmp_path / MARK_NAME).write_text(content)
    with pytest.raises(CondistillError, match=rf"{MARK_NAME} .*if .* is a run directory, write .* to that file"):
        make(tmp_path)


def test_unchanged_inputs_need_no_consent(tmp_path: Path) -> None:
    make(tmp_path, prompts={"seed": 1}, cache={"prompts": "key", "sizes": (1, 2)})
    before = content(tmp_path)
    make(tmp_path, prompts={"seed": 1}, cache={"prompts": "key", "sizes": [1, 2]})
    assert content(tmp_path) == before


CHANGES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"distill": {"steps": 5}}, {"distill": {"steps": 7}}, "distill.steps was 5 and is now 7"),
    ({"a": {"b": 1}}, {"a": {}}, "a.b was 1 and is now not set"),
    ({"teacher file unet/x": "0"}, {"teacher file unet/x": "1"}, "teacher file unet/x has changed"),
    ({}, {"teacher file unet/x": "1"}, "teacher file unet/x was added"),
    ({"teacher file unet/x": "0"}, {}, "teacher file unet/x was removed"),
]


@pytest.mark.parametrize(("before", "after", "reason"), CHANGES)
def test_a_changed_input_is_named_and_nothing_is_touched_without_consent(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], reason: str
) -> None:
    make(tmp_path, cache=before)
    files = content(tmp_path)
    with pytest.raises(CondistillError) as caught:
        make(tmp_path, cache=after)
    assert f"\n  {reason}\n" in str(caught.value)
    assert "--update would move cache (" in str(caught.value)
    assert content(tmp_path) == files


def test_with_consent_the_old_results_are_moved_and_named(tmp_path: Path) -> None:
    make(tmp_path, prompts={"seed": 1}, cache={"size": 1})
    lines: list[str] = []
    make(tmp_path, lines=lines, update=True, prompts={"seed": 1}, cache={"size": 2})
    assert (tmp_path / "cache" / "result").read_text() == "{'size': 2}"
    (old,) = (tmp_path / "old").iterdir()
    assert (old / "cache" / "result").read_text() == "{'size': 1}"
    assert not (old / "prompts").exists()
    assert lines == [
        "update:\n  cache.size was 1 and is now 2".replace("cache.", ""),
        f"moved {tmp_path / 'cache'} to {old / 'cache'}",
    ]


def test_a_linked_folder_stays_a_link_and_its_content_is_kept(tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    run.mkdir()
    make(run)
    (run / "cache").symlink_to(disk)
    make(run, cache={"size": 1})
    make(run, update=True, cache={"size": 2})
    assert (run / "cache").is_symlink()
    assert (disk / "result").read_text() == "{'size': 2}"
    (old,) = (path for path in tmp_path.iterdir() if path.name.startswith("disk-"))
    assert (old / "result").read_text() == "{'size': 1}"


def test_a_folder_on_another_disk_is_renamed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, prompts={"seed": 1}, cache={"size": 1})
    rename = Path.replace

    def other_disk(path: Path, target: Path) -> Path:
        if path.name == "cache" and "old" in target.parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", other_disk)
    lines: list[str] = []
    make(tmp_path, lines=lines, update=True, prompts={"seed": 1}, cache={"size": 2})
    (old,) = (path for path in tmp_path.iterdir() if path.name.startswith("cache-"))
    assert lines[-1] == f"moved {tmp_path / 'cache'} to {old}"
    assert (old / "result").read_text() == "{'size': 1}"
    assert (tmp_path / "cache" / "result").read_text() == "{'size': 2}"


def test_what_was_moved_before_a_failure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, prompts={"seed": 1}, cache={"size": 1})
    rename = Path.replace

    def no_space(path: Path, target: Path) -> Path:
        if path.name == "cache":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", no_space)
    lines: list[str] = []
    with pytest.raises(CondistillError, match="cache cannot be moved"):
        make(tmp_path, lines=lines, update=True, prompts={"seed": 2}, cache={"size": 2})
    assert lines[-1].startswith(f"moved {tmp_path / 'prompts'} to ")


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_update_that_is_killed_at_any_move_needs_consent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, goes_on: bool
) -> None:
    make(tmp_path, distill={"steps": 5})
    pipeline = tmp_path / "pipelines" / "small"
    pipeline.mkdir(parents=True)
    (pipeline / "weights").touch()

    def settle(*, update: bool, moves: int) -> None:
        directory = run_directory(tmp_path, distill={"steps": 7})
        stage = directory.stages["distill"]
        stage.outputs, stage.can_continue = (pipeline,), lambda _old, _new: goes_on
        move, left = RunDir._set_aside, moves

        def killed(directory: RunDir, folder: Path, date: str) -> Path:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return move(directory, folder, date)

        with monkeypatch.context() as patch:
            patch.setattr(RunDir, "_set_aside", killed)
            directory.claim()
            try:
                directory.settle_changes(update=update)
            finally:
                directory.close()

    for moves in (0, 1) if not goes_on else (0,):
        with pytest.raises(KeyboardInterrupt):
            settle(update=True, moves=moves)
        with pytest.raises(CondistillError, match="steps was 5 and is now 7"):
            settle(update=False, moves=0)
    settle(update=True, moves=2)
    assert not pipeline.exists()


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: file.write_text("{")])
def test_results_of_unknown_inputs_are_kept_and_named(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    make(tmp_path, cache={"size": 1})
    spoil(tmp_path / "cache" / "stage.json")
    spoil(tmp_path / "cache" / "stage-copy.json")
    with pytest.raises(CondistillError, match=r"cache has no readable stage\.json"):
        make(tmp_path, cache={"size": 1})
    make(tmp_path, update=True, cache={"size": 1})
    assert len(list((tmp_path / "old").glob("*/cache/result"))) == 1


def test_a_directory_that_another_command_made_since_is_not_updated(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first, second = run_directory(path, cache={"size": 1}), run_directory(path, cache={"size": 2})
    second.claim()
    first.create(recipe())
    try:
        (first.stages["cache"].begin() / "shard").touch()
        with pytest.raises(CondistillError, match="is in use by process"):
            second.settle_changes(update=True)
        assert (path / "cache" / "shard").is_file()
    finally:
        first.close()


def test_an_output_of_unknown_inputs_is_not_replaced_without_consent(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipelines" / "small"

    def settle(*, update: bool) -> None:
        directory = run_directory(tmp_path, distill={"steps": 5})
        directory.stages["distill"].outputs = (pipeline,)
        try:
            directory.claim()
            directory.settle_changes(update=update)
        finally:
            directory.close()

    make(tmp_path)
    settle(update=False)
    pipeline.mkdir(parents=True)
    (pipeline / "weights").touch()
    with pytest.raises(CondistillError, match=r"distill is missing, so it is not known what .*small was made from"):
        settle(update=False)
    settle(update=True)
    assert len(list((tmp_path / "old").glob("*/pipelines/small/weights"))) == 1


def test_results_that_cost_little_are_made_again_without_consent(tmp_path: Path) -> None:
    make(tmp_path, figures={"grid": 1})
    directory = run_directory(tmp_path, figures={"grid": 2})
    directory.stages["figures"].is_costly = False
    directory.claim()
    directory.settle_changes(update=False)
    directory.close()


def test_a_stage_that_can_continue_keeps_its_files_and_moves_its_outputs(tmp_path: Path) -> None:
    make(tmp_path, distill={"steps": 5})
    pipeline = tmp_path / "pipelines" / "small"
    pipeline.mkdir(parents=True)
    (pipeline / "weights").touch()
    for update in (False, True):
        directory = run_directory(tmp_path, distill={"steps": 7})
        stage = directory.stages["distill"]
        stage.outputs = (pipeline,)
        stage.can_continue = lambda old, new: old["steps"] < new["steps"]
        directory.claim()
        if update:
            directory.settle_changes(update=True)
        else:
            with pytest.raises(CondistillError, match="distill continues from its newest checkpoint"):
                directory.settle_changes(update=False)
        directory.close()
    assert not stage.is_done()
    assert (stage.begin() / "result").is_file()
    assert len(list((tmp_path / "old").glob("*/pipelines/small/weights"))) == 1
