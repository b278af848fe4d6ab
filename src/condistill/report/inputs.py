"""What a report is made from, and the names under which it shows models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from condistill.config.recipe import TEACHER, Recipe
from condistill.config.sections import StudentSettings
from condistill.distill.previews import PreviewFolder
from condistill.evaluate.record import Comparison, Evaluation, Grid, GridEntry
from condistill.pipelines.record import StudentRecord
from condistill.report.plots import History

_UNNAMED = "random_conditioning"
"""The only student of a recipe without variants, which is named after the method."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report of a run, or of several pipelines, is made from."""

    title: str
    recipe: Recipe | None
    """None for pipelines that were not made by a recipe."""
    evaluation: Evaluation
    grid: Grid
    grid_folder: Path
    """The folder of the images that the grid names."""
    students: Mapping[str, StudentRecord] = field(default_factory=dict)
    histories: Mapping[str, History] = field(default_factory=dict)
    """By student, the records of its training history."""
    previews: Mapping[str, PreviewFolder] = field(default_factory=dict)
    """By student, the grids that were made during its training."""
    variants: Mapping[str, str] = field(default_factory=dict)
    """By the name of a student in the report, its name in the recipe, where the two differ."""
    pipelines: Mapping[str, str] = field(default_factory=dict)
    """By model, the pipeline, where no recipe made them."""
    runs: tuple[ReportInputs, ...] = ()
    """The runs that share the page, if there are several."""

    @property
    def parts(self) -> tuple[ReportInputs, ...]:
        """The runs of the page."""
        return self.runs or (self,)

    def variant(self, name: str) -> str | None:
        """Return the name in the recipe of a student; None where no recipe has it."""
        known = self.variants.get(name, name)
        return known if self.recipe is not None and known in self.recipe.variants else None


def labelled(inputs: ReportInputs) -> ReportInputs:
    """Return inputs in which a student that is named after the method has the name of its preset instead."""
    return renamed(inputs, student_labels(inputs.recipe))


def student_labels(recipe: Recipe | None) -> dict[str, str]:
    """Return the names that are not those of the recipe: that of the only student of a recipe without variants."""
    if recipe is None or list(recipe.variants) != [_UNNAMED]:
        return {}
    return {_UNNAMED: _size_of(recipe.variant(_UNNAMED)[0])}


def _size_of(student: StudentSettings) -> str:
    """Return the size of a student in a few words: its preset, or else what it keeps."""
    parts: list[str] = [student.preset] if student.preset else []
    parts += [f"width {student.width:g}"] if isinstance(student.width, float) else []
    parts += [f"depth {student.depth:g}"] if isinstance(student.depth, float) else []
    if student.target is not None:
        shares = student.target.model_dump(exclude_none=True)
        parts += [f"{share:g}x {name}" for name, share in shares.items()]
    return ", ".join(parts) or "student"


def renamed(inputs: ReportInputs, names: Mapping[str, str]) -> ReportInputs:
    """Return inputs in which models have other names; those without a new name keep theirs."""
    if not names:
        return inputs

    def new(name: str) -> str:
        return names.get(name, name)

    def keys(values: Mapping[str, Value]) -> dict[str, Value]:
        return {new(name): value for name, value in values.items()}

    variants = {new(name): inputs.variants.get(name, name) for name in inputs.evaluation.students}
    return replace(
        inputs,
        evaluation=rename_models(inputs.evaluation, names),
        grid=_rename_grid(inputs.grid, names),
        students=keys(inputs.students),
        histories=keys(inputs.histories),
        previews=keys(inputs.previews),
        variants=variants,
    )


def rename_models(evaluation: Evaluation, names: Mapping[str, str]) -> Evaluation:
    """Return an evaluation in which models have other names; those without a new name keep theirs."""

    def new(name: str) -> str:
        return names.get(name, name)

    def comparison(each: Comparison) -> Comparison:
        return each.model_copy(update={"one": new(each.one), "other": new(each.other)})

    references = evaluation.references
    if references is not None:
        untrained = {new(name): scores for name, scores in references.untrained.items()}
        references = references.model_copy(update={"untrained": untrained})
    return evaluation.model_copy(
        update={
            "models": {new(name): model for name, model in evaluation.models.items()},
            "baseline": None if evaluation.baseline is None else new(evaluation.baseline),
            "references": references,
            "comparisons": tuple(map(comparison, evaluation.comparisons)),
            "groups": {
                kind: {
                    group: {new(name): scores for name, scores in models.items()} for group, models in groups.items()
                }
                for kind, groups in evaluation.groups.items()
            },
        }
    )


def _rename_grid(grid: Grid, names: Mapping[str, str]) -> Grid:
    def entry(each: GridEntry) -> GridEntry:
        changed = {
            key: {names.get(name, name): value for name, value in getattr(each, key).items()}
            for key in ("images", "correct", "values")
        }
        return each.model_copy(update=changed)

    return grid.model_copy(
        update={
            "splits": {split: tuple(map(entry, entries)) for split, entries in grid.splits.items()},
            "worst": tuple(map(entry, grid.worst)),
            "best": tuple(map(entry, grid.best)),
        }
    )


def teacher_first(names: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values by model, the teacher's first."""
    return dict(sorted(names.items(), key=lambda item: item[0] != TEACHER))
