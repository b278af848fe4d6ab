"""The report: one self-contained HTML file, without scripts and without anything from the network."""

from __future__ import annotations

import base64
import math
import mimetypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path

import yaml

from condistill.config.recipe import SPLITS, TEACHER, Recipe
from condistill.config.sections import MINIATURE
from condistill.distill.previews import PreviewFolder
from condistill.evaluate.record import Evaluation, Grid
from condistill.pipelines.record import StudentRecord
from condistill.report import plots
from condistill.report.cautions import cautions
from condistill.report.previews import preview_tables
from condistill.report.tables import (
    HEADINGS,
    cost_charts,
    costs,
    details,
    metric_notes,
    reference_note,
    score_charts,
    scores,
)
from condistill.report.verdict import subject, verdict
from condistill.utils.atomic import write_text
from condistill.utils.format import percent, significant
from condistill.utils.text import printable


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the grid; `uri` is empty where its file does not exist."""

    model: str
    uri: str
    alt: str
    mark: str
    """`correct`, `wrong`, or empty without a classifier."""
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Card:
    """One prompt with the images of all models."""

    prompt: str
    pictures: list[Picture]


@dataclass(frozen=True, slots=True)
class Curve:
    """The same plot for a light and for a dark page, as data URIs."""

    title: str
    light: str
    dark: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """A student: the layers and channels that it kept from its teacher, and its settings as YAML."""

    name: str
    kept: tuple[str, ...]
    settings: str


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report of a run is made from."""

    title: str
    recipe: Recipe
    evaluation: Evaluation
    grid: Grid
    grid_folder: Path
    """The folder of the images that the grid names."""
    students: Mapping[str, StudentRecord]
    histories: Mapping[str, plots.History]
    """By student, the records of its training history."""
    previews: Mapping[str, PreviewFolder] = field(default_factory=dict)
    """By student, the grids that were made during its training."""


def write_report(path: Path, inputs: ReportInputs) -> Path:
    """Write the report of a run to `path`, whole or not at all."""
    from jinja2 import Environment, StrictUndefined

    evaluation = inputs.evaluation
    headline, detail = verdict(evaluation)
    colours = _colours(evaluation)
    grids = _grids(inputs.grid, inputs.grid_folder)
    page = {
        "title": inputs.title,
        "verdict": _unbroken(headline),
        "detail": _unbroken(detail),
        "cautions": [_unbroken(caution) for caution in cautions(inputs.recipe)],
        "miniature": evaluation.classifier == MINIATURE,
        "models": [(name, colours[name]) for name in evaluation.models],
        "scores": [*scores(evaluation), *costs(evaluation)],
        "details": details(evaluation),
        "notes": [
            *metric_notes(metric for metric in evaluation.metrics if not metric.is_detail),
            *filter(None, [reference_note(evaluation)]),
        ],
        "score_charts": score_charts(evaluation, colours),
        "grids": grids,
        "marked": any(picture.mark for _, cards in grids for card in cards for picture in card.pictures),
        "previews": preview_tables(inputs.previews),
        "total": _total_curve(inputs.histories, colours),
        "curves": _noise_curves(inputs.histories),
        "cost_charts": cost_charts(evaluation, colours),
        "students": [_about(name, student, inputs.recipe) for name, student in inputs.students.items()],
        "provenance": _provenance(inputs.recipe, evaluation),
        "recipe": inputs.recipe.to_yaml(),
        "version": metadata.version("condistill"),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("condistill.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    write_text(path, printable(environment.from_string(template).render(page)))
    return path


def _unbroken(sentence: str) -> str:
    """Return a sentence in which no line breaks between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|(µs|ms|s|min|h|days)\b)", "\u00a0", sentence)


def _colours(evaluation: Evaluation) -> dict[str, str]:
    """Return a colour class per model: the teacher neutral, the verdict's student first in the palette."""
    names = dict.fromkeys([subject(evaluation), *evaluation.students])
    palette = {name: f"c{i % len(plots.COLOURS)}" for i, name in enumerate(names)}
    return {TEACHER: "teacher", **palette}


# --- images


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(model: str, file: Path, prompt: str, correct: bool | None) -> Picture:
    from PIL import Image

    mark = "" if correct is None else "correct" if correct else "wrong"
    try:
        with Image.open(file) as image:
            width, height = image.size
        uri = _uri(mimetypes.guess_type(file.name)[0] or "image/png", file.read_bytes())
    except OSError:
        return Picture(model, "", "", mark, 0, 0)
    alt = f"{model}: {prompt}" + (f" ({mark})" if mark else "")
    return Picture(model, uri, alt, mark, width, height)


def _grids(grid: Grid, folder: Path) -> list[tuple[str, list[Card]]]:
    """Return per split one card per prompt, the teacher's image first."""
    found = []
    for split in [split for split in SPLITS if grid.splits.get(split)]:
        cards = []
        for entry in grid.splits[split]:
            images = sorted(entry.images.items(), key=lambda item: item[0] != TEACHER)
            pictures = [_picture(name, folder / file, entry.prompt, entry.correct.get(name)) for name, file in images]
            cards.append(Card(entry.prompt, pictures))
        found.append((HEADINGS[split], cards))
    return found


# --- curves


def _curve(title: str, plot: Callable[[plots.Ink], bytes | None], note: str = "") -> list[Curve]:
    light, dark = plot(plots.LIGHT), plot(plots.DARK)
    if light is None or dark is None:
        return []
    return [Curve(title, _uri("image/svg+xml", light), _uri("image/svg+xml", dark), note)]


def _total_curve(histories: Mapping[str, plots.History], colours: Mapping[str, str]) -> list[Curve]:
    palette = {name: int(colours[name].removeprefix("c")) for name in histories}
    return _curve("Total loss", lambda ink: plots.total_loss(histories, colours=palette, ink=ink))


def _noise_curves(histories: Mapping[str, plots.History]) -> list[Curve]:
    limits = plots.limits_of(list(histories.values()))
    curves: list[Curve] = []
    for name, history in histories.items():

        def plot(ink: plots.Ink, history: plots.History = history) -> bytes | None:
            return plots.loss_by_noise(history, limits=limits, ink=ink)

        curves += _curve(name, plot, _trained(history))
    return curves


def _trained(history: plots.History) -> str:
    """Return how long a student was trained, and the share of its samples without a true target."""
    if not history:
        return ""
    steps = f"{history[-1].step:,} steps"
    share = math.fsum(record.replaced_prompt for record in history) / len(history)
    return f"{steps}, {percent(share)} of samples with a replaced or empty prompt, or on a path"


# --- text


def _about(name: str, student: StudentRecord, recipe: Recipe) -> About:
    of_student, distill = (settings.model_dump(mode="json", by_alias=True) for settings in recipe.variant(name))
    settings = {"student": of_student, "distill": distill}
    return About(name, student.kept, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _provenance(recipe: Recipe, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return labelled lines on how the figures were made."""
    images = {split: evaluation.images_per_split[split] for split in SPLITS if split in evaluation.images_per_split}
    has_spread = any(
        score.spread is not None
        for model in evaluation.models.values()
        for scores in model.scores.values()
        for score in scores.values()
    )
    spread = "one standard deviation over the seeds; each has its own prompts and noise"
    lines = [
        ("Teacher", recipe.teacher.pipeline),
        ("Images per split", ", ".join(f"{split} {count}" for split, count in images.items())),
        ("Seeds", ", ".join(map(str, evaluation.seeds))),
        ("± in the tables", spread if has_spread else ""),
        ("Too close to call", _error(evaluation, min(images.values()))),
        ("Time per image", _timing(evaluation)),
        ("Precision", f"images, times and peak memory are of weights in {evaluation.dtype}"),
        ("Inference steps", str(evaluation.num_inference_steps)),
        ("Guidance scale", str(evaluation.guidance_scale)),
        ("Starting noise", "the same for every model, prompt by prompt"),
        ("Device", evaluation.device),
        ("torch", evaluation.torch),
        ("condistill", metadata.version("condistill")),
    ]
    return [(label, text) for label, text in lines if text]


def _error(evaluation: Evaluation, images: int) -> str:
    """Return which differences between scores count, and the largest standard error of a share of this many images."""
    rule = "scores that differ by two standard errors of their difference or less"
    shares = [metric for metric in evaluation.metrics if metric.sampling_error(0.5, images) is not None]
    if not shares:
        return rule
    error = max(metric.notation.factor * (metric.sampling_error(0.5, images) or 0.0) for metric in shares)
    return f"{rule}; a share of {images:,} images has a standard error of up to {significant(error, 2)} points"


def _timing(evaluation: Evaluation) -> str:
    """Return how the time of an image was measured."""
    rounds = sorted({model.speed.rounds for model in evaluation.models.values()})
    return (
        f"the shortest of {' or '.join(map(str, rounds))} rounds in which the models take turns, and the median; times "
        "that differ by less than this spread, or by less than 5 %, count as equal, and so do equal networks"
    )
