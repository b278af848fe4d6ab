from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from condistill.errors import CondistillError
from condistill.run.stage_directory import COPY_NAME, STAGE_NAME, StageDir


def stage(root: Path, inputs: Any = None, lines: list[str] | None = None) -> StageDir:
    say = (lambda _: None) if lines is None else lines.append
    return StageDir(root, "cache", lambda: {"seed": 1} if inputs is None else inputs, say=say)


@pytest.fixture
def finished(tmp_path: Path) -> StageDir:
    """A finished stage with the file `shard`."""
    directory = stage(tmp_path)
    (directory.begin() / "shard").write_text("latents")
    directory.finish()
    return directory


def test_a_stage_is_done_only_when_finished_with_the_same_inputs(tmp_path: Path) -> None:
    directory = stage(tmp_path)
    assert not directory.is_done()
    assert directory.begin() == tmp_path / "cache"
    assert not directory.is_done()
    directory.finish()
    assert directory.is_done()
    assert stage(tmp_path).is_done()
    assert not stage(tmp_path, {"seed": 2}).is_done()


def test_an_interrupted_stage_keeps_its_files(tmp_path: Path) -> None:
    (stage(tmp_path).begin() / "shard").touch()
    assert (stage(tmp_path).begin() / "shard").exists()


@pytest.mark.parametrize("fault", ["deleted", "truncated", "flipped"])
def test_a_finished_stage_with_a_damaged_file_is_not_done_and_the_file_is_named_once(
    finished: StageDir, fault: str
) -> None:
    file = finished.path / "shard"
    if fault == "deleted":
        file.unlink()
    else:
        file.write_text({"truncated": "laten", "flipped": "lAtents"}[fault])
    lines: list[str] = []
    again = stage(finished.root, lines=lines)
    assert not again.is_done()
    assert not again.is_done()
    expected = "is missing" if fault == "deleted" else "is damaged or was edited"
    assert lines == [f"{file} {expected}; it is made again"]


def test_files_of_the_user_and_unfinished_files_do_not_matter(finished: StageDir) -> None:
    (finished.path / "notes.txt").write_text("mine")
    (finished.path / ".shard-2.partial").write_text("half")
    assert stage(finished.root).is_done()


def test_a_stage_that_begins_again_deletes_its_own_files_only(finished: StageDir) -> None:
    made = [finished.root / name for name in finished.record().files]  # type: ignore[union-attr]
    (finished.path / "mine.txt").write_text("of the user")
    finished.begin_again()
    assert [file for file in made if file.exists()] == []
    assert (finished.path / "mine.txt").read_text() == "of the user"
    assert not finished.is_done()


def test_files_of_other_inputs_are_never_deleted_or_filled_up(finished: StageDir) -> None:
    other = stage(finished.root, {"seed": 2})
    assert other.holds_other_results()
    with pytest.raises(CondistillError, match=r"cache has files that this run did not make; .* or add --update"):
        other.begin()
    assert (finished.path / "shard").read_text() == "latents"


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b'{"format": 2}', b'{"key": "x", "done": true}'])
def test_files_without_a_readable_record_are_not_touched(finished: StageDir, content: bytes | None) -> None:
    for name in (STAGE_NAME, COPY_NAME):
        record = finished.path / name
        record.unlink() if content is None else record.write_bytes(content)
    again = stage(finished.root)
    assert not again.is_done()
    assert again.holds_other_results()
    with pytest.raises(CondistillError, match="did not make"):
        again.begin()


@pytest.mark.parametrize("fault", ["deleted", "flipped"])
def test_a_damaged_record_is_named_and_its_copy_is_used(finished: StageDir, fault: str) -> None:
    record = finished.path / STAGE_NAME
    content = record.read_text(encoding="utf-8")
    record.unlink() if fault == "deleted" else record.write_text(content.replace("shard", "shbrd"), encoding="utf-8")
    lines: list[str] = []
    assert stage(finished.root, lines=lines).is_done()
    assert lines == [f"{record} is missing or damaged; its copy is used"]


def test_a_noted_file_is_named_when_it_is_damaged_and_nothing_is_made_again(tmp_path: Path) -> None:
    directory = stage(tmp_path)
    (directory.begin() / "shard").write_text("latents")
    (directory.path / "losses").write_text("1 2 3")
    directory.finish([directory.path / "shard"], noted=[directory.path / "losses"])
    (directory.path / "losses").unlink()
    lines: list[str] = []
    assert stage(tmp_path, lines=lines).is_done()
    assert lines == [f"{directory.path / 'losses'} is missing; it is not made again"]


def test_an_empty_folder_and_a_linked_folder_can_be_filled(tmp_path: Path) -> None:
    big_disk = tmp_path / "big disk"
    big_disk.mkdir()
    (tmp_path / "cache").symlink_to(big_disk)
    directory = stage(tmp_path)
    (directory.begin() / "shard").write_text("latents")
    directory.finish()
    assert directory.is_done()
    assert (tmp_path / "cache").is_symlink()
    assert (big_disk / "shard").is_file()


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to(tmp_path / "unmounted")
    with pytest.raises(CondistillError, match="a link to a folder that does not exist"):
        stage(tmp_path).begin()


def test_the_layout_is_that_with_which_the_stage_was_begun(tmp_path: Path) -> None:
    first = stage(tmp_path)
    first.default_layout = {"shard_size": 4}
    first.begin()
    second = stage(tmp_path)
    second.default_layout = {"shard_size": 8}
    second.begin()
    assert second.layout == {"shard_size": 4}


def test_the_record_holds_the_inputs_as_json(finished: StageDir) -> None:
    record = json.loads((finished.path / STAGE_NAME).read_text(encoding="utf-8"))
    assert record["inputs"] == {"seed": 1}
    assert set(record["files"]) == {"cache/shard"}
