"""Run directories with students that were never trained: what an export reads of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condistill.config.recipe import Recipe
from condistill.pipelines.record import STUDENT_NAME, DenoiserSize, StudentRecord
from condistill.run.directory import MARK_NAME, RECIPE_NAME, RunMark
from condistill.students.derive import derive_student
from condistill.students.layer_map import LAYERS_NAME, LayersRecord
from condistill.teachers.family import Family

_SIZE = DenoiserSize(parameters=1, macs=1)


def write_student_run(
    folder: Path, family: Family, teacher: Path, variants: Mapping[str, Mapping[str, Any]], **sections: Any
) -> Path:
    """Write the run of a recipe whose students have just been derived, and return its directory.

    Args:
        variants: as in a recipe, whose student has half the width; a student may be taught by one above it.
        sections: of the recipe.
    """
    (folder / "pipelines").mkdir(parents=True)
    data = {
        "teacher": {"pipeline": str(teacher)},
        "prompts": {"files": ["gone.txt"]},
        "student": {"width": 0.5},
        "variants": dict(variants),
    }
    recipe = Recipe.parse(json.dumps({**data, **sections}), folder=folder)
    RunMark(program="condistill", version="1").write(folder / MARK_NAME)
    (folder / RECIPE_NAME).write_text(recipe.to_yaml(), encoding="utf-8")
    denoisers: dict[str | None, Any] = {None: family.denoiser}
    for name, variant in recipe.variants.items():
        above = denoisers[variant.teacher]
        student = derive_student(above, recipe.variant(name)[0], seed=recipe.seed)
        denoisers[name] = student.denoiser
        directory = folder / "distill" / name
        directory.mkdir(parents=True)
        StudentRecord(kept=student.kept, teacher_size=_SIZE, student_size=_SIZE).write(directory / STUDENT_NAME)
        if student.layers is not None:
            LayersRecord.of(above, student.layers).write(directory / LAYERS_NAME)
        with family.using(student.denoiser) as pipeline:
            pipeline.save_pretrained(folder / "pipelines" / name, safe_serialization=True)
    return folder
