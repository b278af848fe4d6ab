"""The report: one self-contained HTML file that loads nothing from the network and works without its script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

from condistill.config.recipe import TEACHER
from condistill.config.sections import MINIATURE
from condistill.distill.history import BINS
from condistill.pipelines.record import StudentRecord
from condistill.report.cautions import cautions
from condistill.report.evidence import few_images, missing_companions
from condistill.report.figures import Figures, make_figures, palette_of
from condistill.report.groups import group_tables
from condistill.report.inputs import ReportInputs, labelled
from condistill.report.next_steps import next_steps
from condistill.report.pictures import Album, album
from condistill.report.plots import DARK, LIGHT, shades_of
from condistill.report.previews import preview_tables
from condistill.report.provenance import provenance
from condistill.report.several import incomparable, of_other_devices, page_verdict
from condistill.report.tables import cost_charts, costs, details, metric_notes, reference_note, score_charts, scores
from condistill.report.verdict import subject, verdict
from condistill.utils.atomic import write_text
from condistill.utils.text import printable

GENERATOR = '<meta name="generator" content="condistill '
"""The start of the element by which a page of condistill is known."""
MOST_BYTES = 5_000_000
"""Of the page, whatever the run."""
_PREVIEW_SHARE = 0.2
"""Of the bytes for images."""
_FEWEST_BYTES = 100_000
"""For images, even where the rest of the page is long."""
_LONGEST_RECIPE = 60_000
"""Characters of a recipe on the page."""


@dataclass(frozen=True, slots=True)
class About:
    """A student: the layers and channels that it kept from its teacher, and its settings as YAML."""

    name: str
    kept: tuple[str, ...]
    settings: str


def write_report(path: Path, inputs: ReportInputs, *, plots: Path | None = None) -> Path:
    """Write the report of a run to `path`, whole or not at all.

    Args:
        plots: folder for the plots as SVG files, if they are to be written.
    """
    inputs = labelled(inputs)
    evaluation = inputs.evaluation
    first = subject(evaluation) if evaluation.students else TEACHER
    palette = palette_of(evaluation, first)
    figures = make_figures(evaluation, inputs.histories, palette)
    if plots is not None:
        figures.write(plots)
    page = {**_content(inputs, figures, palette), "subject": first}
    write_text(path, _fitting(page, inputs))
    return path


def _fitting(page: dict[str, Any], inputs: ReportInputs) -> str:
    """Return the page with as many images, as large, as fit into it."""
    render = _renderer()
    text = ""
    budget = MOST_BYTES - len(render(page | {"album": Album([]), "previews": []}).encode("utf-8"))
    for _ in range(4):
        budget = max(budget, _FEWEST_BYTES)
        previews = preview_tables(inputs.previews, budget=int(_PREVIEW_SHARE * budget))
        images = album(inputs.grid, inputs.grid_folder, budget=budget - sum(table.bytes for table in previews))
        text = render(page | {"album": images, "previews": previews})
        excess = len(text.encode("utf-8")) - MOST_BYTES
        if excess <= 0:
            break
        budget -= excess
    return text


@cache
def _renderer() -> Callable[[Mapping[str, Any]], str]:
    """Return the function that turns the content of a page into HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    script = resources.files("condistill.report").joinpath("script.js.j2").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = Environment(
        loader=PackageLoader("condistill.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    fixed = {"script": script, "script_hash": digest}

    def render(page: Mapping[str, Any]) -> str:
        return printable(template.render({**page, **fixed}))

    return render


def _content(inputs: ReportInputs, figures: Figures, palette: Mapping[str, int | None]) -> dict[str, Any]:
    """Return everything on the page but its images."""
    evaluation = inputs.evaluation
    colours = {name: "teacher" if index is None else f"c{index}" for name, index in palette.items()}
    headline, sentences = page_verdict(inputs)
    elements, glyphs = figures.inlined()
    return {
        "elements": elements,
        "glyphs": glyphs,
        "title": inputs.title,
        "verdict": _unbroken(headline),
        "details_of_verdict": [_unbroken(sentence) for sentence in sentences],
        "cautions": [
            *incomparable(inputs),
            *of_other_devices(inputs),
            *(_unbroken(caution) for part in inputs.parts for caution in _cautions(part)),
        ],
        "run_verdicts": [(run.title, *verdict(run.evaluation)) for run in inputs.runs],
        "miniature": evaluation.classifier == MINIATURE,
        "models": [(name, colours[name]) for name in evaluation.models],
        "scores": scores(evaluation),
        "costs": costs(evaluation),
        "details": details(evaluation),
        "groups": group_tables(evaluation),
        "next_steps": [(part.title if inputs.runs else "", next_steps(part)) for part in inputs.parts],
        "meanings": metric_notes(metric for metric in evaluation.metrics if not metric.is_detail),
        "notes": [
            *filter(None, [reference_note(evaluation), missing_companions(evaluation)]),
            *few_images(evaluation),
        ],
        "score_charts": score_charts(evaluation, colours),
        "score_plots": figures.scores,
        "loss_plots": figures.shown_losses,
        "cost_charts": cost_charts(evaluation, colours),
        "students": [about for part in inputs.parts for about in _abouts(part)],
        "provenance": [(part.title if inputs.runs else "", provenance(part)) for part in inputs.parts],
        "recipes": [(part.title, _recipe_text(part)) for part in inputs.parts if part.recipe is not None],
        "version": metadata.version("condistill"),
        "shades": list(zip(shades_of(LIGHT, BINS), shades_of(DARK, BINS), strict=True)),
        "inks": (LIGHT, DARK),
    }


def _cautions(inputs: ReportInputs) -> list[str]:
    """Return what a reader must know before judging the students of a run, under the names of the page."""
    if inputs.recipe is None:
        return []
    names = {known: name for name in inputs.evaluation.students if (known := inputs.variant(name)) is not None}
    return cautions(inputs.recipe, names)


def _unbroken(sentence: str) -> str:
    """Return a sentence in which no line breaks between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|(µs|ms|s|min|h|days)\b)", "\u00a0", sentence)


def _recipe_text(inputs: ReportInputs) -> str:
    assert inputs.recipe is not None
    text = inputs.recipe.to_yaml()
    if len(text) <= _LONGEST_RECIPE:
        return text
    return f"{text[:_LONGEST_RECIPE]}\n... the rest is in recipe.yaml of the run directory"


def _abouts(inputs: ReportInputs) -> list[About]:
    return [_about(name, student, inputs) for name, student in inputs.students.items()]


def _about(name: str, student: StudentRecord, inputs: ReportInputs) -> About:
    variant, settings = inputs.variant(name), ""
    if variant is not None and inputs.recipe is not None:
        of_student, distill = (each.model_dump(mode="json", by_alias=True) for each in inputs.recipe.variant(variant))
        settings = yaml.safe_dump({"student": of_student, "distill": distill}, sort_keys=False, allow_unicode=True)
    folder = f"pipelines/{variant}" if variant not in (None, name) else ""
    kept = (f"The pipeline is {folder}.", *student.kept) if folder else student.kept
    return About(name, kept, settings)
