from __future__ import annotations

import io
import sys

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
