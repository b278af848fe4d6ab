"""Every plot of a report: as SVG files for papers, and as parts of the page with their results in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from condistill.config.recipe import TEACHER
from condistill.distill.history import BINS
from condistill.evaluate.metrics import Metric
from condistill.evaluate.record import Evaluation
from condistill.report import plots
from condistill.report.evidence import PROMPTS, hardest_split, main_metrics
from condistill.report.scatter import COSTS, describe, points_of, score_against_cost
from condistill.report.vector import Inliner, colour_variables
from condistill.utils.atomic import write_text
from condistill.utils.format import percent

FOLDER_NAME = "plots"
_MOST_CURVES = 8
"""Students whose losses the page shows by noise level; every plot is a file."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: its file name without ending, its SVG, and what it shows in words."""

    name: str
    title: str
    alt: str
    svg: bytes
    note: str = ""


@dataclass(frozen=True, slots=True)
class ScorePlots:
    """One metric against every cost."""

    title: str
    lead: str
    is_main: bool
    """Whether the page shows it unfolded."""
    plots: list[Plot]


@dataclass(frozen=True, slots=True)
class Figures:
    """Every plot of a report."""

    scores: list[ScorePlots]
    losses: list[Plot]

    def all(self) -> list[Plot]:
        """Return every plot, in the order of the page."""
        return [plot for group in self.scores for plot in group.plots] + self.losses

    def inlined(self) -> tuple[dict[str, str], str]:
        """Return every plot as an element of the page, by name, and one with the letters that they share."""
        inliner = Inliner(colour_variables(BINS))
        elements = {plot.name: inliner.inline(plot.svg, prefix=f"p{i}") for i, plot in enumerate(self.all())}
        return elements, inliner.glyphs()

    @property
    def shown_losses(self) -> list[Plot]:
        """The losses on the page; with many students, not all are shown by noise level."""
        return self.losses[: _MOST_CURVES + 1]

    def write(self, folder: Path) -> None:
        """Write every plot as an SVG file."""
        for plot in self.all():
            write_text(folder / f"{plot.name}.svg", plot.svg.decode("utf-8"))


def make_figures(
    evaluation: Evaluation, histories: Mapping[str, plots.History], colours: Mapping[str, int | None]
) -> Figures:
    """Return every plot of a report.

    Args:
        colours: by model, its index in the palette; None for the teacher.
    """
    return Figures(_score_plots(evaluation, colours), _losses(histories, colours))


def _score_plots(evaluation: Evaluation, colours: Mapping[str, int | None]) -> list[ScorePlots]:
    """Return the plots of every metric that two models have, or one next to a reference."""
    split = hardest_split(evaluation)
    found: list[ScorePlots] = []
    for metric in main_metrics(evaluation):
        other = evaluation.of_other_seed(split, metric)
        points = points_of(evaluation.models, split, metric, COSTS[0], colours)
        if len(points) < (1 if other else 2):
            continue
        made = []
        for cost in COSTS:
            points = points_of(evaluation.models, split, metric, cost, colours)
            svg = score_against_cost(points, metric, cost, other_seed=other.value if other else None)
            alt = f"{metric.label} on {PROMPTS[split]} against {cost.label.lower()}: {describe(points, metric, cost)}."
            if other:
                alt += f" Dashed line: two seeds of the teacher, {metric.notation.text(other.value)}."
            made.append(Plot(f"{metric.name}-{cost.name}", cost.label, alt, svg))
        found.append(ScorePlots(metric.label, _lead(evaluation, split, metric), not found, made))
    return found


def _lead(evaluation: Evaluation, split: str, metric: type[Metric]) -> str:
    better = "higher" if metric.direction == "higher" else "lower"
    scores = [evaluation.score(name, split, metric) for name in evaluation.models]
    bars = ""
    if any(score and score.low is not None for score in scores):
        bars = " Lines are 95 % intervals over the prompts."
    elif any(score and score.spread for score in scores):
        bars = " Lines are one standard deviation over the seeds."
    dashed = ""
    if evaluation.of_other_seed(split, metric):
        dashed = " The dashed line is the distance between two images of the teacher from different seeds."
    return f"{metric.label} on {PROMPTS[split]}: {metric.description}; {better} is better.{bars}{dashed}"


def _losses(histories: Mapping[str, plots.History], colours: Mapping[str, int | None]) -> list[Plot]:
    """Return the total losses of all students, then the output loss of each by noise level."""
    made = []
    palette = {name: colours.get(name) or 0 for name in histories}
    total = plots.total_loss(histories, colours=palette)
    if total is not None:
        shown = [f"{name} {plots.describe_loss(*plots.total_of(history))}" for name, history in histories.items()]
        made.append(Plot("loss-total", "Total loss", f"Total loss: {'; '.join(shown)}.", total))
    limits = plots.limits_of(list(histories.values()))
    for number, (name, history) in enumerate(histories.items()):
        svg = plots.loss_by_noise(history, limits=limits)
        if svg is None:
            continue
        steps, bins = plots.bins_of(history)
        ends = ((0, "cleanest"), (bins.shape[1] - 1, "noisiest"))
        shown = [f"{place} tenth {plots.describe_loss(steps, bins[:, column])}" for column, place in ends]
        alt = f"Output loss of {name} by noise level: {'; '.join(shown)}."
        made.append(Plot(_file_name(f"loss-{name}", number), name, alt, svg, _trained(history)))
    return made


def _file_name(name: str, number: int) -> str:
    """Return a name that every file system takes; a name that had to be changed ends with a number."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[:80]
    return safe if safe == name else f"{safe}-{number}"


def _trained(history: plots.History) -> str:
    """Return how long a student was trained, and the share of its samples without a true target."""
    if not history:
        return ""
    steps = f"{history[-1].step:,} steps"
    share = math.fsum(record.replaced_prompt for record in history) / len(history)
    return f"{steps}, {percent(share)} of samples with a replaced or empty prompt, or on a path"


def palette_of(evaluation: Evaluation, first: str) -> dict[str, int | None]:
    """Return the index in the palette of each model: the teacher neutral, the verdict's student first."""
    names = dict.fromkeys([first, *evaluation.students])
    return {TEACHER: None, **{name: number % len(plots.COLOURS) for number, name in enumerate(names)}}
