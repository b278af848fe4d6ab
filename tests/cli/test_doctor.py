from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from condistill import __version__
from condistill.cli import doctor
from condistill.teachers.registry import FAMILIES
from condistill.utils import hardware


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


def test_doctor_shows_its_own_version_the_memory_and_what_families_need() -> None:
    _, output = check_installation()
    assert re.search(rf"^condistill +{re.escape(__version__)}", output, re.MULTILINE)
    assert re.search(r"^memory +[\d.]+ [GT]iB, [\d.]+ [MGT]iB available", output, re.MULTILINE)
    for family in FAMILIES.values():
        row = next(line for line in output.splitlines() if re.match(rf"{family.name} ", line))
        assert all(name in row for name in (family.pipeline_classes[0], *family.packages))


def test_doctor_shows_how_to_install_what_a_family_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda package: None if package == "sentencepiece" else "1.0")
    can_run, output = check_installation()
    assert can_run
    assert "sentencepiece, protobuf (pip install sentencepiece)" in " ".join(output.split())


def test_doctor_works_where_nothing_is_known_of_memory_and_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "condistill.teachers.registry", None)
    monkeypatch.setattr(hardware, "Path", lambda _: Path("no-such-file"))
    monkeypatch.setattr(hardware.os, "sysconf", _no_sysconf)
    _, output = check_installation()
    assert "unknown, unknown available" in output
    assert "FluxPipeline" not in output


def _no_sysconf(_: str) -> int:
    raise ValueError("unrecognized configuration name")


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


def test_doctor_shows_whether_the_packages_of_the_evaluation_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda _: "1.0")
    monkeypatch.setattr(doctor, "evaluation_fault", lambda: None)
    _, output = check_installation()
    assert re.search(r"^torch-fidelity \(optional\) +1\.0 *$", output, re.MULTILINE)
    assert "condistill[eval]" not in output
    monkeypatch.setattr(doctor, "evaluation_fault", lambda: "operator torchvision::nms does not exist")
    can_run, output = check_installation()
    assert can_run
    assert all(word in output for word in ("1.0, cannot be imported", "torchvision::nms"))
    assert "condistill[eval]" in output
    monkeypatch.setattr(doctor, "installed_version", lambda package: None if package in doctor.EVALUATION else "1.0")
    _, output = check_installation()
    assert re.search(r"^torch-fidelity \(optional\) +- +pip install 'condistill\[eval\]'", output, re.MULTILINE)


def test_the_fault_of_the_evaluation_is_that_of_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setitem(sys.modules, "torch_fidelity", object())
    monkeypatch.setitem(sys.modules, module, object())
    assert doctor.evaluation_fault() is None
    monkeypatch.setitem(sys.modules, module, None)
    assert module in (doctor.evaluation_fault() or "")
