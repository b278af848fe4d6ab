"""Scores and costs as the rows and bars of the report, and as the score table of a model card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from condistill.config.recipe import TEACHER
from condistill.config.sections import MINIATURE
from condistill.evaluate.metrics import Metric, Score
from condistill.evaluate.record import Evaluation, ModelRecord
from condistill.pipelines.card import ScoreRow, ScoreTable
from condistill.pipelines.lineage import teacher_name
from condistill.report.agreement import closer_than_before
from condistill.report.compare import need_the_same_memory, take_as_long
from condistill.report.evidence import PROMPTS, difference, main_metrics, missing_companions
from condistill.report.pictures import HEADINGS
from condistill.report.scatter import interval_text
from condistill.utils.format import byte_size, duration, percent, quantity, si_quantity, times_as_fast

MINIATURE_NOTE = "Miniature figures, from a small classifier of rendered scenes: not FID on MS-COCO."
MISSING = "–"

Values = Mapping[str, float | None]
"""One figure of every model; None where a model does not have it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: its text, a smaller note, and whether it is the best of the students."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of every model; `higher` is whether higher is better, and None where students are not ranked."""

    label: str
    higher: bool | None
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `width` in percent of its track; `colour` is a class of the page, such as `c0`."""

    name: str
    text: str
    width: float
    colour: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Charts:
    """The charts of one metric, one per split, under a line of text."""

    lead: str
    charts: list[Chart]


@dataclass(frozen=True, slots=True)
class Style:
    """How the figures of a row are written and compared."""

    write: Callable[[float], str]
    higher: bool | None = False
    """Whether higher is better; None: the students are not ranked."""
    are_equal: Callable[[str, str], bool] = lambda _one, _other: False
    """Whether the figures of two models, given by name, differ by no more than the error of the measurement."""


def seconds(value: float) -> str:
    """Return a measured time with two digits."""
    return duration(value, 2)


def _row(label: str, values: Values, style: Style, note: Callable[[str], str] = lambda _: "") -> list[Row]:
    """Return one row over all models, or no row where no model has the figure.

    The best students are marked, unless no student is worse. Students are equally good where their figures read alike
    or differ by no more than the error of the measurement.

    Args:
        note: returns the note to the figure of a model, given its name.
    """
    if all(value is None for value in values.values()):
        return []
    of_students = {name: value for name, value in values.items() if value is not None and name != TEACHER}
    marked: set[str] = set()
    if of_students and style.higher is not None:
        best = (max if style.higher else min)(of_students, key=lambda name: of_students[name])
        text = style.write(of_students[best])
        marked = {n for n, value in of_students.items() if style.write(value) == text or style.are_equal(n, best)}
    if len(marked) == len(of_students):
        marked = set()
    cells = [
        Cell(MISSING) if value is None else Cell(style.write(value), note(name), name in marked)
        for name, value in values.items()
    ]
    return [Row(label, style.higher, cells)]


def _score_values(evaluation: Evaluation, split: str, metric: type[Metric]) -> dict[str, float | None]:
    scores = {name: model.score(split, metric) for name, model in evaluation.models.items()}
    return {name: score.value if score else None for name, score in scores.items()}


def _score_groups(evaluation: Evaluation, *, details: bool) -> list[Group]:
    """Return the metrics that are, or are not, details: per split, each score with its interval or its spread."""
    groups = []
    for split in evaluation.splits:
        rows: list[Row] = []
        for metric in evaluation.metrics:
            if metric.is_detail != details:
                continue

            def spread(name: str, split: str = split, metric: type[Metric] = metric) -> str:
                score = evaluation.score(name, split, metric)
                if score is None:
                    return ""
                spread = "" if score.spread is None else metric.notation.spread(score.spread)
                return interval_text(metric, score) or spread

            def are_equal(one: str, other: str, split: str = split, metric: type[Metric] = metric) -> bool:
                found = difference(evaluation, one, other, split, metric)
                return found is not None and not found.is_clear

            style = Style(metric.notation.text, higher=metric.direction == "higher", are_equal=are_equal)
            scored = _row(metric.label, _score_values(evaluation, split, metric), style, spread)
            rows += [_with_references(evaluation, split, metric, row) for row in scored]
        groups += [Group(HEADINGS[split], rows)] if rows else []
    return groups


def _with_references(evaluation: Evaluation, split: str, metric: type[Metric], row: Row) -> Row:
    """Return a row of distances to the teacher with those of its references; other rows as they are."""
    cells = []
    for name, cell in zip(evaluation.models, row.cells, strict=True):
        other = evaluation.of_other_seed(split, metric) if name == TEACHER else None
        before = evaluation.before_training(name, split, metric)
        notes = [cell.note] if cell.note else []
        notes += [f"{metric.notation.text(before.value)} before training"] if before else []
        of_other = Cell(metric.notation.text(other.value), "another seed") if other else None
        cells.append(of_other or replace(cell, note="; ".join(notes)))
    return replace(row, cells=cells)


def reference_note(evaluation: Evaluation) -> str:
    """Return a sentence on the references of the distances; empty without references."""
    references = evaluation.references
    if references is None or not references.other_seed:
        return ""
    images = references.images_per_split["all"]
    return (
        "Before training: the student's first weights. Another seed: two images of the teacher of the same prompt from "
        f"different noise. Both are measured on {images} {'prompt' if images == 1 else 'prompts'}."
    )


def scores(evaluation: Evaluation) -> list[Group]:
    """Return the table of every metric that is not a detail."""
    return _score_groups(evaluation, details=False)


def details(evaluation: Evaluation) -> list[Group]:
    """Return the table of the metrics that are details, such as single attributes."""
    return _score_groups(evaluation, details=True)


def _figures(evaluation: Evaluation, figure: Callable[[ModelRecord], float | None]) -> dict[str, float | None]:
    return {name: figure(model) for name, model in evaluation.models.items()}


def costs(evaluation: Evaluation) -> list[Group]:
    """Return size and speed, each figure of a student with its share of the teacher's."""

    def row(label: str, figure: Callable[[ModelRecord], float], style: Style) -> list[Row]:
        def share(name: str) -> str:
            teacher = figure(evaluation.teacher)
            return percent(figure(evaluation.models[name]) / teacher) if teacher and name != TEACHER else ""

        return _row(label, _figures(evaluation, figure), style, share)

    models, teacher = evaluation.models, evaluation.teacher

    def speed(name: str) -> str:
        model = models[name]
        spread = f"median {seconds(model.speed.median_sec_per_image)}"
        if name == TEACHER:
            return spread
        ratio = "as fast" if take_as_long(model, teacher) else times_as_fast(model.speed.relative_time)
        return f"{ratio}, {spread}"

    timed = Style(seconds, are_equal=lambda one, other: take_as_long(models[one], models[other]))
    memory = Style(byte_size, are_equal=lambda one, other: need_the_same_memory(models[one], models[other]))
    train_sec = _figures(evaluation, lambda model: model.compute.train_sec if model.compute else None)
    rows = [
        *row("Parameters", lambda model: model.size.parameters, Style(quantity)),
        *row("MACs per step", lambda model: model.size.macs, Style(si_quantity)),
        *row("Weights on disk", lambda model: model.size.weight_bytes, Style(byte_size)),
        *row("Pipeline on disk", lambda model: model.size.pipeline_bytes, Style(byte_size)),
        *row("Denoiser evaluations per image", lambda model: model.sampling.denoiser_evaluations, Style(quantity)),
        *_row("Time per image", _figures(evaluation, lambda model: model.speed.sec_per_image), timed, speed),
        *row("Peak memory", lambda model: model.speed.peak_memory_bytes, memory),
        *_row("Time to train", train_sec, Style(seconds, higher=None)),
    ]
    return [Group("Size and speed", rows)]


def _chart(
    title: str,
    values: Values,
    write: Callable[[float], str],
    colours: Mapping[str, str],
    *,
    full: float | None = None,
) -> list[Chart]:
    """Return a chart with one bar per model; the longest possible bar is `full`, or else the largest figure."""
    measured = {name: value for name, value in values.items() if value is not None}
    full = full or max(measured.values(), default=0.0)
    if not measured or full <= 0:
        return []
    return [
        Chart(
            title,
            [
                Bar(name, write(value), round(min(100 * value / full, 100.0), 2), colours[name])
                for name, value in measured.items()
            ],
        )
    ]


def score_charts(evaluation: Evaluation, colours: Mapping[str, str]) -> list[Charts]:
    """Return the charts of every metric of single images that has an upper bound and is not a detail."""
    found = []
    for metric in evaluation.metrics:
        if metric.upper_bound is None or metric.is_detail or metric.is_partial:
            continue
        charts: list[Chart] = []
        for split in evaluation.splits:
            values = _score_values(evaluation, split, metric)
            charts += _chart(HEADINGS[split], values, metric.notation.text, colours, full=metric.upper_bound)
        found.append(Charts(f"{metric.description[:1].upper()}{metric.description[1:]}.", charts))
    return found


def cost_charts(evaluation: Evaluation, colours: Mapping[str, str]) -> list[Chart]:
    """Return one chart per cost of an image."""

    def chart(title: str, figure: Callable[[ModelRecord], float], write: Callable[[float], str]) -> list[Chart]:
        return _chart(title, _figures(evaluation, figure), write, colours)

    return [
        *chart("Parameters of the denoiser", lambda model: model.size.parameters, quantity),
        *chart("Multiply-accumulates per denoising step", lambda model: model.size.macs, si_quantity),
        *chart("Weights of the denoiser on disk", lambda model: model.size.weight_bytes, byte_size),
        *chart("Whole pipeline on disk", lambda model: model.size.pipeline_bytes, byte_size),
        *chart("Time per image", lambda model: model.speed.sec_per_image, seconds),
        *chart("Peak memory", lambda model: model.speed.peak_memory_bytes, byte_size),
    ]


def metric_notes(metrics: Iterable[type[Metric]]) -> list[str]:
    """Return one line per metric with the quantity that it measures."""
    return [f"{metric.label}: {metric.description}." for metric in metrics]


def card_sizes(evaluation: Evaluation, name: str) -> dict[str, tuple[int, int]]:
    """Return the bytes on disk of the teacher's files and of a student's, by label."""
    teacher, student = evaluation.teacher.size, evaluation.models[name].size
    return {
        "Weights of the denoiser on disk": (teacher.weight_bytes, student.weight_bytes),
        "Whole pipeline on disk": (teacher.pipeline_bytes, student.pipeline_bytes),
    }


def _with_error(metric: type[Metric], score: Score | None) -> str:
    """Return a score with its spread over seeds and its 95 % interval: `67 % ± 2.0 (61.0 to 73.0)`."""
    if score is None:
        return MISSING
    spread = "" if score.spread is None else f" {metric.notation.spread(score.spread)}"
    return metric.notation.text(score.value) + spread + interval_text(metric, score, " ({})")


def card_scores(evaluation: Evaluation, name: str) -> ScoreTable:
    """Return the scores of one student for its model card, next to its teacher's and those of plain distillation."""
    headings = {TEACHER: "teacher", name: "this student"}
    if evaluation.baseline not in (None, name):
        headings = {TEACHER: "teacher", str(evaluation.baseline): "plain distillation", name: "this student"}
    metrics = main_metrics(evaluation)
    rows = []
    for split in evaluation.splits:
        for metric in metrics:
            values = [evaluation.score(model, split, metric) for model in headings]
            if any(values):
                cells = tuple(_with_error(metric, value) for value in values)
                rows.append(ScoreRow(f"{metric.label}, {PROMPTS[split]}", cells))
    notes = [MINIATURE_NOTE] if evaluation.classifier == MINIATURE else []
    notes += [closer_than_before(evaluation, name), missing_companions(evaluation)]
    notes += [*metric_notes(metrics), *_how_measured(evaluation, metrics)]
    return ScoreTable(tuple(headings.values()), tuple(rows), tuple(filter(None, notes)))


def _how_measured(evaluation: Evaluation, metrics: Sequence[type[Metric]]) -> Iterator[str]:
    """Yield sentences of a model card on how its scores were measured; they name no folder of the machine."""
    shown = [(model, split, metric) for model in evaluation.models for split in evaluation.splits for metric in metrics]
    found = [score for each in shown if (score := evaluation.score(*each)) is not None]
    if any(score.spread is not None for score in found):
        yield "± is the standard deviation over the evaluation seeds."
    if any(score.low is not None for score in found):
        yield "In brackets: the 95 % interval over the prompts."
    networks = [f"{name} {teacher_name(each.source)} ({each.resize})" for name, each in evaluation.networks.items()]
    if networks:
        yield f"Networks: {'; '.join(networks)}."
    if reference := evaluation.reference_images:
        source = "the teacher's images" if reference.source == TEACHER else teacher_name(reference.source)
        yield f"Sets of images are compared with {source}, {reference.images:,} images."
    outside = {record.label: None for model in evaluation.models.values() for record in model.outside.values()}
    if outside:
        yield f"Computed by other programs: {', '.join(outside)}."
    yield f"Measured on {evaluation.images_per_split['all']} images in total."
