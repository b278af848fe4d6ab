from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from condistill.errors import CondistillError
from condistill.utils.atomic import (
    atomic_directory,
    atomic_file,
    discard_partial,
    partial_path,
    recover,
    remove,
    write_text,
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as partial:
        partial.write_text("content")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "content"
    assert names(path.parent) == {"a.txt"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_keeps_its_old_content_when_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_partial_file_of_a_killed_run_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    partial_path(path).write_text("long text of a run that was killed")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == {"a.txt"}


def test_a_directory_replaces_the_old_one_completely(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for content in ("one", "two"):
        with atomic_directory(path) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / content).write_text(content)
        assert names(path / "sub") == {content}
    assert names(tmp_path) == {"d"}


def test_a_directory_keeps_its_old_content_when_filling_fails(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").touch()

    def fill() -> None:
        with atomic_directory(path) as partial:
            (partial / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert names(path) == {"old"}
    assert names(tmp_path) == {"d"}


def test_a_full_disk_keeps_the_old_directory(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError, match="No space left"), atomic_directory(path) as partial:
        (partial / "new").touch()
    assert names(path) == {"old"}
    assert names(tmp_path) == {"d"}


def test_the_old_directory_is_restored_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").touch()
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self == partial_path(path):
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="input/output"), atomic_directory(path):
        pass
    assert names(path) == {"old"}
    assert names(tmp_path) == {"d"}


def test_partial_directories_of_a_killed_run_are_not_part_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for leftover in (partial_path(path), tmp_path / ".d.old", path):
        leftover.mkdir()
        (leftover / "stale").touch()
    with atomic_directory(path) as partial:
        (partial / "new").touch()
    assert names(path) == {"new"}
    assert names(tmp_path) == {"d"}


def test_remove_deletes_files_folders_and_links_and_ignores_missing_paths(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    for name in ("link", "file", "folder", "none"):
        remove(tmp_path / name)
    assert names(tmp_path) == {"kept"}
    assert names(kept) == {"file"}


def test_a_directory_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with atomic_directory(path) as partial:
        (partial / "file").touch()
        recover(tmp_path)  # the lock is of the open directory, so it counts within one process too
        with pytest.raises(CondistillError, match=r"another process is writing .*/d; wait until it ends"):
            discard_partial(path)
        with pytest.raises(CondistillError, match="another process"), atomic_directory(path):
            pass
    assert names(path) == {"file"}
    partial_path(path).mkdir()  # of a process that was killed
    discard_partial(path)
    assert names(tmp_path) == {"d"}


def test_an_empty_directory_is_replaced_without_a_temporary_name_for_it(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / ".d.old").write_text("of the user")
    with atomic_directory(tmp_path / "d") as partial:
        (partial / "file").touch()
    assert names(tmp_path / "d") == {"file"}
    assert (tmp_path / ".d.old").read_text() == "of the user"


def test_the_present_folder_is_a_directory_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    with atomic_directory(Path()) as partial:
        (partial / "file").touch()
    assert names(tmp_path / "d") == {"file"}
