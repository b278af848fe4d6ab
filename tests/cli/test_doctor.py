from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from condistill.cli import doctor


def examine() -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=120, record=True)
    return doctor.examine(console), console.export_text()


def test_doctor_tells_versions_devices_and_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "miniature_is_there", lambda: True)
    well, told = examine()
    assert well
    assert all(name in told for name in (*doctor.REQUIRED, "Python", "CPU", "free disk", "miniature", "all is well"))


def test_a_missing_package_is_told_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda package: None if package == "pyarrow" else found(package))
    well, told = examine()
    assert not well
    assert "pip install pyarrow" in told


def test_a_missing_miniature_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "miniature_is_there", lambda: False)
    well, told = examine()
    assert not well
    assert "something is missing" in told


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "miniature_is_there", lambda: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    well, told = examine()
    assert not well
    assert "cannot be imported" in told
