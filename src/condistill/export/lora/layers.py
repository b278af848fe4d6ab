"""The layers of a student in a finished run: recorded when it was derived, or found again from its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from condistill.config.recipe import TEACHER, Recipe
from condistill.config.sections import TeacherSettings
from condistill.distill import stage as distill_stage
from condistill.errors import CondistillError
from condistill.pipelines.record import STUDENT_NAME, StudentRecord
from condistill.run.directory import RECIPE_NAME
from condistill.students.derive import derive_student
from condistill.students.layer_map import LAYERS_NAME, LayerMap, LayersRecord, chained
from condistill.students.settle import settled_student
from condistill.teachers.load import load_teacher
from condistill.teachers.locate import is_plain
from condistill.teachers.prepare import prepared_settings


@dataclass(frozen=True)
class StudentLayers:
    """Where the layers of a student are from."""

    layer_map: LayerMap
    """From the student to the teacher of the recipe."""
    teacher: Mapping[str, Any]
    """Config of that teacher's denoiser."""


def teacher_settings(run: Path, recipe: Recipe) -> TeacherSettings:
    """Return the teacher of a run as it is loaded: that of the recipe, or the directory that was made of it."""
    made = run / TEACHER
    is_made = not is_plain(recipe.teacher) and made.is_dir()
    return prepared_settings(recipe.teacher, made) if is_made else recipe.teacher


def student_layers(run: Path, name: str) -> StudentLayers:
    """Return the layers of a student; of one whose teacher is another student, as far as the teacher of the recipe.

    Raises:
        CondistillError: the student has random weights, or its layers were not recorded and its teacher is no longer
            on this machine.
    """
    recipe = Recipe.load(run / RECIPE_NAME)
    record = _layers(run, recipe, name)
    layer_map: LayerMap = record.layer_map()
    for teacher in recipe.teachers(name):
        record = _layers(run, recipe, teacher)
        layer_map = chained(record.layer_map(), layer_map)
    return StudentLayers(layer_map, record.teacher)


def _layers(run: Path, recipe: Recipe, name: str) -> LayersRecord:
    """Return the layers of a student by those of its own teacher."""
    if recipe.variant(name)[0].weights == "random":
        raise CondistillError(
            f"the student {name!r} began with random weights (student.weights), so none of its layers is one of its "
            "teacher, and a LoRA of the teacher does not fit them; distill a student with student.weights: teacher"
        )
    file = run / distill_stage.NAME / name / LAYERS_NAME
    if file.is_file():
        return LayersRecord.read(file, remedy="delete it, and it is found again from the teacher")
    try:
        return _found_again(run, recipe, name)
    except CondistillError as error:
        raise CondistillError(
            f"{file} does not exist, and which layers and channels the student has cannot be found again: {error}"
        ) from error


def _found_again(run: Path, recipe: Recipe, name: str) -> LayersRecord:
    """Derive a student again, and check that it is the one of the run."""
    directory = run / distill_stage.NAME / name
    student, settings = recipe.variant(name)
    student, scores = settled_student(student, directory)
    above = recipe.variants[name].teacher
    source = (
        teacher_settings(run, recipe) if above is None else TeacherSettings(pipeline=str(run / "pipelines" / above))
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_teacher(source, device=device, only_sampled=True).denoiser
    derived = derive_student(
        teacher, student, scores=scores, seed=recipe.seed, features=settings.loss.features, may_be_as_large=True
    )
    kept = StudentRecord.read(directory / STUDENT_NAME, remedy="run `condistill distill` with --update").kept
    if other := [line for line in derived.kept if line not in kept]:
        raise CondistillError(f"its teacher or the recipe has changed: now {other[0]!r}, and then {list(kept)}")
    assert derived.layers is not None, "its weights are the teacher's"
    return LayersRecord.of(teacher, derived.layers)
