"""Scores per concept or source of the prompts, the groups with the largest gap to the teacher first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from condistill.config.recipe import TEACHER
from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.record import Evaluation
from condistill.report.evidence import agreement_metrics, quality_metrics
from condistill.report.scatter import interval_text
from condistill.report.tables import MISSING, Cell, Group, Row
from condistill.utils.text import shorten

TITLES = {"concept": "Per concept", "source": "Per source"}
_MOST_ROWS = 40


@dataclass(frozen=True, slots=True)
class GroupTable:
    """One kind of group: a table with a row per group, under a line of text."""

    title: str
    lead: str
    table: list[Group]


def group_tables(evaluation: Evaluation) -> list[GroupTable]:
    """Return one table per kind of group that was measured, by the most telling metric that it has."""
    made = []
    for kind, groups in evaluation.groups.items():
        metric = _metric(evaluation, groups)
        if metric is None:
            continue
        ordered = sorted(groups, key=lambda name: (-_gap(groups[name], metric), name))
        rows = [_row(evaluation, shorten(name, 60), groups[name], metric) for name in ordered[:_MOST_ROWS]]
        title = TITLES.get(kind, f"Per {kind}")
        lead = f"{metric.label} of each {kind}, the largest gap to the teacher first."
        if len(ordered) > _MOST_ROWS:
            lead += f" {_MOST_ROWS} of {len(ordered):,} are shown; metrics.json has all."
        made.append(GroupTable(title, lead, [Group(metric.label, rows)]))
    return made


Scores = Mapping[str, Mapping[str, Score]]
"""By model and metric."""


def _metric(evaluation: Evaluation, groups: Mapping[str, Scores]) -> type[Metric] | None:
    """Return the most telling metric of which some student has a score in some group."""
    metrics = [*quality_metrics(evaluation), *agreement_metrics(evaluation)]
    found = {name for group in groups.values() for model in evaluation.students for name in group.get(model, {})}
    return next((metric for metric in metrics if metric.name in found), None)


def _gap(group: Scores, metric: type[Metric]) -> float:
    """Return how much worse the worst student of a group is than the teacher; without its score, how bad it is."""
    students = [scores[metric.name] for name, scores in group.items() if name != TEACHER and metric.name in scores]
    teacher = group.get(TEACHER, {}).get(metric.name)
    best = metric.oriented(teacher.value) if teacher else 0.0
    return max((best - metric.oriented(score.value) for score in students), default=float("-inf"))


def _row(evaluation: Evaluation, label: str, group: Scores, metric: type[Metric]) -> Row:
    cells = []
    for model in evaluation.models:
        score = group.get(model, {}).get(metric.name)
        cells.append(
            Cell(MISSING) if score is None else Cell(metric.notation.text(score.value), interval_text(metric, score))
        )
    return Row(label, metric.direction == "higher", cells)
