"""What a sweep leaves: one table with the spread of every figure, a plot, and all figures as data."""

from __future__ import annotations

import json
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from condistill.config.recipe import SPLITS, TEACHER
from condistill.config.sections import MINIATURE
from condistill.config.yaml_tree import flow
from condistill.evaluate.record import look
from condistill.report.plots import dots
from condistill.utils.atomic import write_text
from condistill.utils.format import quantity, significant

if TYPE_CHECKING:
    from condistill.workflow.sweep_cases import Sweep, SweepRun

RESULT_NAME = "sweep.json"
"""Every figure; also what tells a sweep's directory from any other."""

Done: TypeAlias = "tuple[SweepRun, Mapping[str, Any]]"
"""A run with its metrics."""
Rows = dict[str, dict[int, Mapping[str, Any]]]
"""What was measured of each model, by label and seed."""
Column = tuple[tuple[str, str], Callable[[float, int], str]]
"""Where a figure stands among what was measured, and how it is written with so many digits."""


def measured(done: Sequence[Done]) -> Rows:
    """The teacher, once for every group of runs in which it draws something else, and the cases."""

    def drawn(models: Mapping[int, Mapping[str, Any]]) -> list[Any]:
        return [[model.get(part) for part in (*SPLITS, "size")] for model in models.values()]

    teachers, rows, cases = Rows(), Rows(), Rows()
    for run, metrics in done:
        teachers.setdefault(run.group, {})[run.seed] = metrics["models"][TEACHER]
        for case in run.cases:
            cases.setdefault(case.label, {})[run.seed] = metrics["models"][case.name]
    for group, models in teachers.items():
        if not any(all(map(operator.eq, drawn(models), drawn(other))) for other in rows.values()):
            rows[f"{TEACHER}, {group}" if rows else TEACHER] = models
    return rows | cases


def _values(models: Mapping[int, Any], *place: str) -> list[float]:
    return [value for model in models.values() if (value := look(model, *place)) is not None]


def _columns(rows: Rows) -> dict[str, Column]:
    """The columns of the table, by heading."""
    write: Callable[[float, int], str] = significant
    key, title = "latent_rmse", "latent RMSE"
    if classified := any(_values(models, split, "all_correct") for models in rows.values() for split in SPLITS):
        key, title, write = "all_correct", "all right %", lambda share, _: f"{100 * share:.1f}"
    splits = [split for split in SPLITS if any(_values(models, split, key) for models in rows.values())]
    columns: dict[str, Column] = {f"{title}, {split}": ((split, key), write) for split in splits}
    if classified:
        columns["Fréchet distance, all"] = (("all", "frechet_classifier"), significant)
    counts = {f"{who} forwards": ("compute", f"{who}_forwards") for who in ("teacher", "student", "cache")}
    for heading, place in {"parameters": ("size", "parameters"), **counts}.items():
        columns[heading] = (place, lambda count, _: quantity(count))
    return columns | {"training s": (("compute", "train_sec"), significant)}


def _cell(models: Mapping[int, Any], place: tuple[str, str], write: Callable[[float, int], str]) -> str:
    """`mean ± standard deviation`; a count that is the same for all seeds stands alone."""
    values = _values(models, *place)
    if not values:
        return "-"
    text = write(statistics.fmean(values), 3)
    if len(values) > 1 and (place[0] in SPLITS or min(values) < max(values)):
        text += f" ± {write(statistics.stdev(values), 2)}"
    return text if len(values) == len(models) else f"{text} ({len(values)} of {len(models)} seeds)"


def table(rows: Rows) -> list[list[str]]:
    """Headings, then a line for every row."""
    columns = _columns(rows)
    lines = [[label, *(_cell(models, *column) for column in columns.values())] for label, models in rows.items()]
    return [["case", *columns], *lines]


def _markdown(sweep: Sweep, out: Path, done: Sequence[Done], total: int) -> str:
    """The table, and all that is needed to believe it or to make it again."""
    facts: dict[str, list[str]] = {}
    for run, metrics in done:
        images = ", ".join(f"{n} {split}" for split, n in metrics["images_per_split"].items())
        fact = f"Machine: {metrics['device']}, torch {metrics['torch']}. Images per model and seed: {images}; "
        fact += f"{metrics['num_inference_steps']} sampling steps, guidance {metrics['guidance_scale']}."
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
        f"Seeds: {seeds}. A figure is its mean over seeds ± their standard deviation; forwards are counted in samples.",
        "\n".join([head, "|---" * head.count(" | ") + "|---|", *lines]),
        "![The scores of the table](sweep.svg)",
        "What a case changes, and its student at one seed:",
        "\n".join(
            f"- {label}: `{' '.join(f'{k}={flow(v)}' for k, v in case.changes.items()) or 'nothing'}`; "
            f"`{folder}/pipelines/{case.name}`"
            for label, (case, folder) in cases.items()
        ),
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def write_sweep(sweep: Sweep, out: Path, done: Sequence[Done], total: int) -> None:
    """Write `sweep.json`, `sweep.svg` and `sweep.md` of the runs that are done, of `total`."""
    rows = measured(done)
    cases = {case.label: {"name": case.name, "changes": case.changes} for run, _ in done for case in run.cases}
    result = {
        "command": sweep.command(out),
        "planned_runs": total,
        "runs": {run.folder: {k: v for k, v in metrics.items() if k != "models"} for run, metrics in done},
        "models": {label: cases.get(label, {}) | _summary(of) | {"seeds": of} for label, of in rows.items()},
    }
    write_text(out / RESULT_NAME, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    factors = {"all_correct": 100, "latent_rmse": 1}
    scores = {title: place for title, (place, _) in _columns(rows).items() if place[1] in factors}
    drawn = {
        label: {title: [factors[p[1]] * v for v in _values(models, *p)] for title, p in scores.items()}
        for label, models in rows.items()
    }
    write_text(out / "sweep.svg", dots(drawn).decode())
    write_text(out / "sweep.md", _markdown(sweep, out, done, total))


def _summary(models: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every figure, by group and metric."""
    places = [(g, k) for m in models.values() for g, of in m.items() if isinstance(of, Mapping) for k in of]
    summary: dict[str, Any] = {"mean": {}, "std": {}}
    for group, key in dict.fromkeys(places):
        values = _values(models, group, key)
        if values:
            summary["mean"].setdefault(group, {})[key] = statistics.fmean(values)
        if len(values) > 1:
            summary["std"].setdefault(group, {})[key] = statistics.stdev(values)
    return summary
