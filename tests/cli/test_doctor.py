from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from condistill.cli import doctor


def check_installation() -> tuple[bool, str]:
    """Return whether condistill can run, and the printed table."""
    console = Console(file=io.StringIO(), width=120, record=True)
    return doctor.check_installation(console), console.export_text()


def test_doctor_shows_versions_devices_and_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_miniature", lambda: True)
    can_run, output = check_installation()
    assert can_run
    assert all(
        name in output
        for name in (*doctor.REQUIRED, "Python", "CPU", "free disk space", "miniature teacher", "all checks passed")
    )


def test_doctor_shows_how_to_install_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda package: None if package == "pyarrow" else version(package))
    can_run, output = check_installation()
    assert not can_run
    assert "pip install pyarrow" in output


def test_doctor_fails_without_the_miniature_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_miniature", lambda: False)
    can_run, output = check_installation()
    assert not can_run
    assert "some checks failed" in output


def test_doctor_fails_if_torch_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_miniature", lambda: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    can_run, output = check_installation()
    assert not can_run
    assert "cannot be imported" in output


def test_doctor_shows_the_extra_of_a_missing_optional_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: None if package in doctor.OPTIONAL else "1.0")
    _, output = check_installation()
    assert all(how in output for how in doctor.OPTIONAL.values())


def test_doctor_shows_names_of_devices_and_reasons_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: {"torch": "no [bold]module[/]\x1b[31m", "cuda:[0]": "GPU [a]"})
    _, output = check_installation()
    assert all(text in output for text in (r"no [bold]module[/]\x1b[31m", "cuda:[0]", "GPU [a]"))


def test_doctor_works_in_a_directory_that_was_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(doctor, "devices", dict)  # torch reads the current directory too
    _, output = check_installation()
    assert "unknown: No such file or directory" in output
