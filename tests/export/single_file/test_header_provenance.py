from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from condistill.export.single_file.provenance import provenance
from condistill.pipelines.record import DenoiserSize, StudentRecord

RECIPE = {
    "teacher": {"pipeline": "/home/someone/models/big"},
    "prompts": {"files": ["a.txt"]},
    "student": {"width": 0.5},
}


@pytest.mark.parametrize("licence", ["openrail++", None])
def test_a_student_of_a_run_names_its_teacher_without_a_path_and_its_layers(
    licence: str | None, tmp_path: Path
) -> None:
    directory = tmp_path / "pipelines" / "small"
    directory.mkdir(parents=True)
    (directory / "README.md").write_text(f"---\nlicense: {licence}\n---\n" if licence else "no head", encoding="utf-8")
    source = SimpleNamespace(name="small", directory=directory, run=tmp_path)
    known = {"modelspec.license": licence} if licence else {}
    assert provenance(source) == known  # type: ignore[arg-type] # a run whose records are gone
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
    (tmp_path / "distill" / "small").mkdir(parents=True)
    size = DenoiserSize(parameters=2, macs=2)
    record = StudentRecord(kept=("down_blocks.0: layer 0",), teacher_size=size, student_size=size)
    record.write(tmp_path / "distill" / "small" / "student.json")
    kept = json.dumps(["down_blocks.0: layer 0"])
    expected = {**known, "condistill.teacher": "big", "condistill.kept": kept}
    assert provenance(source) == expected  # type: ignore[arg-type]
