"""Several finished runs in one page: their students in one table, their images of equal prompts and noise together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from condistill.config.recipe import TEACHER, Recipe
from condistill.distill.history import HISTORY_NAME, read_history
from condistill.distill.previews import FOLDER_NAME as PREVIEWS
from condistill.distill.previews import PreviewFolder
from condistill.errors import CondistillError
from condistill.evaluate.figures import FinishedEvaluation
from condistill.evaluate.metrics import Score
from condistill.evaluate.record import GRID_NAME, METRICS_NAME, Grid, GridEntry, ModelRecord
from condistill.pipelines.record import STUDENT_NAME, StudentRecord
from condistill.report.across import comparisons_across
from condistill.report.inputs import ReportInputs, labelled, renamed
from condistill.report.verdict import verdict_sentences
from condistill.run.directory import MARK_NAME, RECIPE_NAME

Value = TypeVar("Value")
_RECIPE_SUFFIXES = (".yaml", ".yml")
_FIGURES = Path("evaluation", "figures")
_SAME = ("classifier", "seeds", "images_per_split", "num_inference_steps", "guidance_scale", "networks", "dtype")
"""Settings of an evaluation without which scores cannot be compared."""


def load_run(path: Path) -> ReportInputs:
    """Return what the report of a finished run shows.

    Args:
        path: a run directory, the folder of an evaluation of pipelines, or a recipe whose run is in `runs/NAME`.

    Raises:
        CondistillError: there is no finished evaluation.
    """
    folder = Path("runs") / path.stem if path.suffix in _RECIPE_SUFFIXES and not path.is_dir() else path
    if not folder.is_dir():
        of_recipe = "" if folder == path else f", where the run of {path} would be"
        raise CondistillError(
            f"there is no folder {folder}{of_recipe}; give a run directory, such as runs/recipe, or run the recipe "
            "first"
        )
    figures = folder / _FIGURES if (folder / _FIGURES / METRICS_NAME).is_file() else folder
    missing = [name for name in (METRICS_NAME, GRID_NAME) if not (figures / name).is_file()]
    if missing:
        kind = "run directory" if (folder / MARK_NAME).is_file() else "folder"
        raise CondistillError(
            f"the {kind} {folder} has no finished evaluation ({_FIGURES / missing[0]} is missing); finish it with "
            "`condistill run RECIPE`, or leave it out"
        )
    recipe = Recipe.load(folder / RECIPE_NAME) if (folder / RECIPE_NAME).is_file() else None
    finished = FinishedEvaluation(figures)
    evaluation = finished.evaluation()
    students = [name for name in evaluation.students if (folder / "distill" / name).is_dir()]
    inputs = ReportInputs(
        title=folder.resolve().name,
        recipe=recipe,
        evaluation=evaluation,
        grid=finished.grid(),
        grid_folder=finished.grid_folder,
        students=_records(folder, students),
        histories={name: read_history(folder / "distill" / name / "checkpoints" / HISTORY_NAME) for name in students},
        previews={name: PreviewFolder(folder / "distill" / name / PREVIEWS) for name in students},
    )
    return labelled(inputs)


def _records(folder: Path, students: Iterable[str]) -> dict[str, StudentRecord]:
    files = {name: folder / "distill" / name / STUDENT_NAME for name in students}
    return {name: StudentRecord.read(file, remedy="") for name, file in files.items() if file.is_file()}


def joined(runs: Sequence[ReportInputs]) -> ReportInputs:
    """Return several runs as one; a single run stays as it is.

    A student is named after its run, followed by its own name where the run has several. The teacher of the first run
    stands for all of them; images of another teacher are named after its run.
    """
    if len(runs) == 1:
        return runs[0]
    named = [_named(run, title) for run, title in zip(runs, _titles(runs), strict=True)]
    first = named[0].evaluation
    models: dict[str, ModelRecord] = {TEACHER: first.teacher}
    for run in named:
        models |= {name: model for name, model in run.evaluation.models.items() if name != TEACHER}
    untrained = {
        name: scores
        for run in named
        if run.evaluation.references is not None
        for name, scores in run.evaluation.references.untrained.items()
    }
    references = first.references.model_copy(update={"untrained": untrained}) if first.references else None
    evaluation = first.model_copy(
        update={
            "models": models,
            "quick": any(run.evaluation.quick for run in named),
            "baseline": None,
            "references": references,
            "networks": {name: each for run in named for name, each in run.evaluation.networks.items()},
            "comparisons": tuple(each for run in named for each in run.evaluation.comparisons),
            "groups": _join_groups(named),
        }
    )
    page = ReportInputs(
        title=f"{len(named)} runs: {', '.join(run.title for run in named)}",
        recipe=None,
        evaluation=evaluation,
        grid=_join_grids(named),
        grid_folder=Path("/"),
        students=_all(run.students for run in named),
        histories=_all(run.histories for run in named),
        previews=_all(run.previews for run in named),
        runs=tuple(named),
    )
    if incomparable(page):
        return page
    compared = (*evaluation.comparisons, *comparisons_across(named))
    return replace(page, evaluation=evaluation.model_copy(update={"comparisons": compared}))


def _all(parts: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """Return the values of all runs by student."""
    return {name: value for part in parts for name, value in part.items()}


def _titles(runs: Sequence[ReportInputs]) -> list[str]:
    """Return a name per run; equal names get a number."""
    titles: list[str] = []
    for run in runs:
        number, title = 1, run.title
        while title in titles:
            number += 1
            title = f"{run.title} ({number})"
        titles.append(title)
    return titles


def _named(run: ReportInputs, title: str) -> ReportInputs:
    """Return a run whose students have the name of the run."""
    students = run.evaluation.students
    names = {name: title if len(students) == 1 else f"{title}/{name}" for name in students}
    return replace(renamed(run, names), title=title)


Groups = dict[str, dict[str, dict[str, dict[str, Score]]]]
"""By kind, group, model and metric."""


def _join_groups(runs: Sequence[ReportInputs]) -> Groups:
    joined_groups: Groups = {}
    for run in runs:
        for kind, groups in run.evaluation.groups.items():
            for group, models in groups.items():
                known = joined_groups.setdefault(kind, {}).setdefault(group, {})
                known.update({name: dict(scores) for name, scores in models.items() if name not in known})
    return joined_groups


# --- images


@dataclass
class _Row:
    """One prompt with the images of several runs."""

    entry: GridEntry
    images: dict[str, str] = field(default_factory=dict)
    correct: dict[str, bool] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def finished(self) -> GridEntry:
        return self.entry.model_copy(update={"images": self.images, "correct": self.correct, "values": self.values})


def _join_grids(runs: Sequence[ReportInputs]) -> Grid:
    """Return the prompts of all runs; those with the same image of the teacher become one, with all students."""
    ranked = {run.grid.ranked_by for run in runs}
    splits = dict.fromkeys(split for run in runs for split in run.grid.splits)
    teachers: dict[str, str] = {}
    joined_splits = {
        split: tuple(_join_rows([(run, run.grid.splits.get(split, ())) for run in runs], teachers)) for split in splits
    }
    if len(ranked) > 1 or ranked == {None}:
        return Grid(splits=joined_splits)
    worst = _join_rows([(run, run.grid.worst) for run in runs], teachers)
    best = _join_rows([(run, run.grid.best) for run in runs], teachers)
    return Grid(
        splits=joined_splits,
        ranked_by=runs[0].grid.ranked_by,
        worst=tuple(sorted(worst, key=_mean_value, reverse=True)),
        best=tuple(sorted(best, key=_mean_value)),
    )


def _mean_value(entry: GridEntry) -> float:
    return math.fsum(entry.values.values()) / max(len(entry.values), 1)


def _join_rows(parts: Sequence[tuple[ReportInputs, Sequence[GridEntry]]], teachers: dict[str, str]) -> list[GridEntry]:
    """Return the prompts of several runs.

    Args:
        teachers: hashes of the teacher's images by file, which are read once.
    """
    rows: dict[tuple[str, int, str, str], _Row] = {}
    for run, entries in parts:
        for entry in entries:
            file = run.grid_folder / entry.images[TEACHER] if TEACHER in entry.images else None
            digest = teachers.setdefault(str(file), _digest(file)) if file else ""
            row = rows.setdefault((entry.split, entry.seed, entry.prompt, digest), _Row(entry))
            found = {model: str((run.grid_folder / name).resolve()) for model, name in entry.images.items()}
            row.images |= {model: name for model, name in found.items() if model not in row.images}
            row.correct |= {model: mark for model, mark in entry.correct.items() if model not in row.correct}
            row.values |= entry.values
    return [row.finished() for row in rows.values()]


def _digest(file: Path) -> str:
    """Return the hash of a file; empty where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


# --- whether scores can be compared


def incomparable(inputs: ReportInputs) -> list[str]:
    """Return a sentence per setting in which the evaluations of the runs of a page differ; none for a single run."""
    runs = inputs.runs
    if not runs:
        return []
    found = []
    sizes = {run.title: run.evaluation.teacher.size.parameters for run in runs}
    teachers = {run.title: run.recipe.teacher.pipeline for run in runs if run.recipe is not None}
    if len(set(sizes.values())) > 1:
        teachers = teachers or {title: f"{size:,} parameters" for title, size in sizes.items()}
        found.append(f"The runs have different teachers ({_listed(teachers)}), so their scores cannot be compared.")
    for name in _SAME:
        values = {run.title: getattr(run.evaluation, name) for run in runs}
        if any(value != values[runs[0].title] for value in values.values()):
            shown = {title: _text(value) for title, value in values.items()}
            words = name.replace("_", " ")
            found.append(
                f"The evaluations differ in {words} ({_listed(shown)}): scores of different runs cannot be compared."
            )
    return found


def of_other_devices(inputs: ReportInputs) -> list[str]:
    """Return a sentence if the times of the runs of a page were measured on different devices."""
    devices = {run.title: run.evaluation.device for run in inputs.runs}
    if len(set(devices.values())) < 2:
        return []
    return [f"Times were measured on different devices ({_listed(devices)}), so they cannot be compared."]


def page_verdict(inputs: ReportInputs) -> tuple[str, list[str]]:
    """Return the first sentence of a page, and those that belong to it; runs that cannot be compared are not."""
    if incomparable(inputs):
        return f"{len(inputs.runs)} runs whose scores cannot be compared: each is judged by itself.", []
    return verdict_sentences(inputs.evaluation)


def _listed(values: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _text(value: object) -> str:
    if isinstance(value, dict):
        counts = {key: each if isinstance(each, int) else "" for key, each in value.items()}
        return ", ".join(f"{key} {count}".strip() for key, count in counts.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
