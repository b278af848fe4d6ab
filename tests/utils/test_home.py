from __future__ import annotations

from pathlib import Path

import pytest

from condistill.errors import CondistillError
from condistill.utils.home import expand_home, resolve_path


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/a/b.txt") == tmp_path / "a" / "b.txt"
    assert resolve_path("~/a/../b.txt", Path("/elsewhere")) == tmp_path.resolve() / "b.txt"
    assert resolve_path("~") == tmp_path.resolve()
    assert resolve_path("a/~/b", Path("/x")) == Path("/x/a/~/b")


def test_an_unknown_user_is_named(tmp_path: Path) -> None:
    for name in ("~nosuchuser/x.txt", "~nosuchuser", "~a\0b/x"):
        with pytest.raises(CondistillError, match=r"there is no home directory for '~.*write the whole path"):
            resolve_path(name, tmp_path)


def test_a_file_whose_name_starts_with_a_tilde_is_found(tmp_path: Path) -> None:
    (tmp_path / "~draft.txt").touch()
    assert resolve_path("~draft.txt", tmp_path) == (tmp_path / "~draft.txt").resolve()


def test_a_path_that_cannot_be_resolved_is_absolute(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "x\0y", "x" * 5000):
        assert resolve_path(name, tmp_path).is_absolute()
