"""The results of a sweep: one table with the spread of every figure, a plot, and all figures as data."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from condistill.config.recipe import SPLITS, TEACHER
from condistill.config.sections import MINIATURE
from condistill.config.yaml_tree import flow
from condistill.evaluate.metrics import Metric
from condistill.evaluate.record import Evaluation, ModelRecord, measured_metrics
from condistill.report.evidence import missing_companions
from condistill.report.plots import dots
from condistill.utils.atomic import write_text
from condistill.utils.format import quantity, significant
from condistill.utils.text import printable

if TYPE_CHECKING:
    from condistill.workflow.sweep_cases import Sweep, SweepRun

RESULT_NAME = "sweep.json"
"""Every figure; this file also distinguishes a sweep's directory from any other."""

Done: TypeAlias = "tuple[SweepRun, Evaluation]"
"""A finished run and its evaluation."""
Rows = dict[str, dict[int, ModelRecord]]
"""The records of each model, by label and seed."""


@dataclass(frozen=True)
class Column:
    """One figure of every row."""

    heading: str
    read: Callable[[ModelRecord], float | None]
    write: Callable[[float, int], str]
    """Writes a number with this many significant digits."""
    always_spread: bool = False
    """Whether a spread of 0 is shown; counts that are the same for all seeds have none."""
    interval: Callable[[ModelRecord], tuple[float, float] | None] = lambda _: None
    """Returns the 95 % interval over the prompts, which is shown where there is one seed."""

    def values(self, models: Mapping[int, ModelRecord]) -> list[float]:
        """Return the figure of every seed that has it."""
        return [value for model in models.values() if (value := self.read(model)) is not None]

    def cell(self, models: Mapping[int, ModelRecord]) -> str:
        """Return `mean ± standard deviation` over seeds, and how many seeds have the figure where not all do.

        The figure of a single seed has its 95 % interval over the prompts instead: `value (low to high)`.
        """
        values = self.values(models)
        if not values:
            return "-"
        text = self.write(statistics.fmean(values), 3)
        if len(values) > 1 and (self.always_spread or min(values) < max(values)):
            text += f" ± {self.write(statistics.stdev(values), 2)}"
        elif len(models) == 1 and (ends := self.interval(next(iter(models.values())))):
            text += f" ({' to '.join(self.write(end, 3) for end in ends)})"
        return text if len(values) == len(models) else f"{text} ({len(values)} of {len(models)} seeds)"


def measured(done: Sequence[Done]) -> Rows:
    """Return the rows of the table: the teacher, then the cases.

    The teacher has one row for every group of runs in which its scores or its size differ.
    """
    teachers, rows, cases = Rows(), Rows(), Rows()
    for run, evaluation in done:
        teachers.setdefault(run.group, {})[run.seed] = evaluation.models[TEACHER]
        for case in run.cases:
            cases.setdefault(case.label, {})[run.seed] = evaluation.models[case.name]
    for group, models in teachers.items():
        if not any(_are_equal(models, other) for other in rows.values()):
            rows[f"{TEACHER}, {group}" if rows else TEACHER] = models
    return rows | cases


def _are_equal(models: Mapping[int, ModelRecord], others: Mapping[int, ModelRecord]) -> bool:
    """Return whether models have the same scores and sizes, seed by seed, for the seeds of the first."""
    pairs = zip(models.values(), others.values(), strict=False)
    return all(model.scores == other.scores and model.size == other.size for model, other in pairs)


def _main_metrics(rows: Rows) -> list[type[Metric]]:
    models = [model for of_seeds in rows.values() for model in of_seeds.values()]
    return [metric for metric in measured_metrics(models) if not metric.is_detail]


def _telling(rows: Rows) -> list[type[Metric]]:
    """Return the main metrics, those first that cannot rank a worse model first."""
    return sorted(_main_metrics(rows), key=lambda metric: metric.is_partial)


def _score_column(split: str, metric: type[Metric]) -> Column:
    def read(model: ModelRecord) -> float | None:
        score = model.score(split, metric)
        return score.value if score else None

    def interval(model: ModelRecord) -> tuple[float, float] | None:
        score = model.score(split, metric)
        return (score.low, score.high) if score and score.low is not None and score.high is not None else None

    unit = f" {metric.notation.unit}" if metric.notation.unit else ""
    heading = f"{metric.label}{unit}, {split}"
    return Column(heading, read, metric.notation.number, always_spread=True, interval=interval)


def _score_columns(rows: Rows) -> list[Column]:
    """Return the columns of scores: the first telling metric on every split, every other metric on all prompts."""
    columns = []
    for metric in _main_metrics(rows):
        for split in SPLITS if metric is _telling(rows)[0] else ("all",):
            column = _score_column(split, metric)
            if any(column.values(models) for models in rows.values()):
                columns.append(column)
    return columns


def _cost_columns() -> list[Column]:
    def count(heading: str, read: Callable[[ModelRecord], float | None]) -> Column:
        return Column(heading, read, lambda number, _: quantity(number))

    return [
        count("parameters", lambda model: model.size.parameters),
        count("teacher forwards", lambda model: model.compute.teacher_forwards if model.compute else None),
        count("student forwards", lambda model: model.compute.student_forwards if model.compute else None),
        count("cache forwards", lambda model: model.compute.cache_forwards if model.compute else None),
        Column("training s", lambda model: model.compute.train_sec if model.compute else None, significant),
    ]


def table(rows: Rows) -> list[list[str]]:
    """Return the headings, then one line for every row."""
    columns = [*_score_columns(rows), *_cost_columns()]
    lines = [[label, *(column.cell(models) for column in columns)] for label, models in rows.items()]
    return [["case", *(column.heading for column in columns)], *lines]


def _plot(rows: Rows) -> bytes:
    """Return the plot of the first metric that does not mislead alone on every split, as SVG."""
    metrics = _telling(rows)[:1]
    columns = [(metric, _score_column(split, metric)) for metric in metrics for split in SPLITS]
    return dots(
        {
            label: {
                column.heading: [metric.notation.factor * value for value in values]
                for metric, column in columns
                if (values := column.values(models))
            }
            for label, models in rows.items()
        },
        intervals={
            label: {
                column.heading: (metric.notation.factor * ends[0], metric.notation.factor * ends[1])
                for metric, column in columns
                for model in models.values()
                if (ends := column.interval(model))
            }
            for label, models in rows.items()
            if len(models) == 1
        },
    )


def _markdown(sweep: Sweep, out: Path, done: Sequence[Done], total: int) -> str:
    """Return the page of the sweep: its table, the conditions of its runs, and the changes of every case."""
    facts: dict[str, list[str]] = {}
    for run, evaluation in done:
        images = ", ".join(f"{n} {split}" for split, n in evaluation.images_per_split.items())
        fact = f"Machine: {evaluation.device}, torch {evaluation.torch}. Images per model and seed: {images}; "
        fact += f"{evaluation.num_inference_steps} sampling steps, guidance {evaluation.guidance_scale}."
        facts.setdefault(fact, []).append(run.folder)
    seeds = ", ".join(dict.fromkeys(str(run.seed) for run, _ in done))
    miniature = MINIATURE in {run.recipe.teacher.pipeline for run, _ in done}
    head, *lines = [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in table(measured(done))
    ]
    cases = {case.label: (case, run.folder) for run, _ in done for case in run.cases}
    paragraphs = [
        f"# Sweep of {sweep.recipe.name}",
        "Miniature figures: not FID on MS-COCO." if miniature else "",
        f"**{len(done)} of {total} runs are done.**" if len(done) < total else "",
        f"Command: `{sweep.command(out)}`",
        *(fact if len(facts) == 1 else f"{fact} In {', '.join(folders)}." for fact, folders in facts.items()),
        f"Seeds: {seeds}. {_reading(measured(done))} Forwards are counted in samples.",
        *dict.fromkeys(missing_companions(evaluation) for _, evaluation in done),
        "\n".join([head, "|---" * head.count(" | ") + "|---|", *lines]),
        "![The scores of the first metric](sweep.svg)",
        "The changes of every case, and its student at one seed:",
        "\n".join(
            f"- {label}: `{' '.join(f'{k}={flow(v)}' for k, v in case.changes.items()) or 'nothing'}`; "
            f"`{folder}/pipelines/{case.name}`"
            for label, (case, folder) in cases.items()
        ),
    ]
    return printable("\n\n".join(filter(None, paragraphs)) + "\n")


def _reading(rows: Rows) -> str:
    """Return a sentence on how the figures of the table are written."""
    if any(len(models) > 1 for models in rows.values()):
        return "Figures are mean ± standard deviation over seeds."
    columns = _score_columns(rows)
    if any(column.interval(model) for column in columns for models in rows.values() for model in models.values()):
        return "Figures have their 95 % interval over the prompts; the spread over seeds needs several --seeds."
    return "Figures are of one seed."


def write_sweep(sweep: Sweep, out: Path, done: Sequence[Done], total: int) -> None:
    """Write `sweep.json`, `sweep.svg` and `sweep.md` of the runs that are done, of `total`."""
    rows = measured(done)
    cases = {case.label: {"name": case.name, "changes": case.changes} for run, _ in done for case in run.cases}
    not_shown = {"models", "references"}
    result = {
        "command": sweep.command(out),
        "planned_runs": total,
        "runs": {run.folder: evaluation.model_dump(mode="json", exclude=not_shown) for run, evaluation in done},
        "models": {label: cases.get(label, {}) | _summary(models) for label, models in rows.items()},
    }
    write_text(out / RESULT_NAME, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "sweep.svg", _plot(rows).decode())
    write_text(out / "sweep.md", _markdown(sweep, out, done, total))


def _summary(models: Mapping[int, ModelRecord]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of every figure, by group and name, and the figures themselves.

    `intervals` has the 95 % interval of every score that has one, by seed, split and metric.
    """
    seeds = {seed: model.figures() for seed, model in models.items()}
    summary: dict[str, Any] = {"mean": {}, "std": {}, "seeds": seeds}
    places = [(group, name) for groups in seeds.values() for group, named in groups.items() for name in named]
    for group, name in dict.fromkeys(places):
        values = [groups[group][name] for groups in seeds.values() if name in groups.get(group, {})]
        summary["mean"].setdefault(group, {})[name] = statistics.fmean(values)
        if len(values) > 1:
            summary["std"].setdefault(group, {})[name] = statistics.stdev(values)
    return summary | {"intervals": {seed: _intervals(model) for seed, model in models.items()}}


def _intervals(model: ModelRecord) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the intervals of the scores of a model, by split and metric."""
    return {
        split: {
            name: (score.low, score.high)
            for name, score in scores.items()
            if score.low is not None and score.high is not None
        }
        for split, scores in model.scores.items()
    }
