"""The report stage: one page for people, and a model card for every pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from condistill.distill import stage as distill_stage
from condistill.distill.facts import card_facts
from condistill.evaluate import stage as evaluate_stage
from condistill.export import find_source
from condistill.pipelines.card import PipelineParts, is_edited, model_card
from condistill.pipelines.sampling import SAMPLING_NAME, planned_sampling
from condistill.report.cautions import cautions
from condistill.report.delivery import delivery
from condistill.report.figures import FOLDER_NAME
from condistill.report.html import write_report
from condistill.report.inputs import ReportInputs, labelled, student_labels
from condistill.report.tables import card_scores, card_sizes
from condistill.report.verdict import verdict
from condistill.run.context import Run
from condistill.teachers.files import PipelineFiles
from condistill.utils.atomic import write_text
from condistill.utils.distributed import on_main_process
from condistill.utils.hashing import key_of

NAME = "report"
REPORT_NAME = "report.html"


def key(run: Run) -> str:
    """Return the hash of the figures that the report shows."""
    return key_of(NAME, evaluate_stage.key(run))


def is_done(run: Run) -> bool:  # noqa: ARG001 - the same for every run
    """Return False: the report costs little, so it is written every time."""
    return False


def make(run: Run) -> None:
    """Write the report and the model cards, on the main process."""
    on_main_process(run.accelerator, lambda: _write(run))


def open(run: Run) -> Path:
    """Return the path of the report."""
    return run.results / REPORT_NAME


def page_inputs(run: Run) -> ReportInputs:
    """Return what the page of a run, or of one of its protocols, is made from."""
    variants, finished = distill_stage.open(run), evaluate_stage.open(run)
    name = run.path.resolve().name
    return labelled(
        ReportInputs(
            title=f"{name}, {run.protocol.name}" if run.protocol else name,
            recipe=run.recipe,
            evaluation=finished.evaluation(),
            grid=finished.grid(),
            grid_folder=finished.grid_folder,
            students={name: variant.record() for name, variant in variants.items()},
            histories={name: variant.history(run.say) for name, variant in variants.items()},
            previews={name: variant.previews() for name, variant in variants.items()},
        )
    )


def write_page(run: Run, inputs: ReportInputs) -> Path:
    """Write `report.html` and its plots, and return its path."""
    return write_report(open(run), inputs, plots=run.results / FOLDER_NAME)


def _read(path: Path) -> str:
    """Return the text of a file; empty where there is none."""
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""


def _write_texts(run: Run) -> None:
    """Write the sampling and the model card of every student; files that the user edited are moved to `old/` first."""
    variants = distill_stage.open(run)
    files = {variant.pipeline / SAMPLING_NAME: planned_sampling(run.recipe, name) for name, variant in variants.items()}
    _replace(
        run,
        {file: sampling.to_json() for file, sampling in files.items()},
        edited=[file for file, sampling in files.items() if (text := _read(file)) and not sampling.may_replace(text)],
    )
    cards = {variant.pipeline / "README.md": _card(run, name) for name, variant in variants.items()}
    edited = [file for file, card in cards.items() if (text := _read(file)) not in ("", card) and is_edited(text)]
    _replace(run, cards, edited=edited)


def _replace(run: Run, texts: Mapping[Path, str], *, edited: list[Path]) -> None:
    """Write files, after those that the user edited are moved to `old/`, which is printed."""
    run.directory.set_aside(edited)
    for path, text in texts.items():
        write_text(path, text)


def _card(run: Run, name: str) -> str:
    """Return the model card of a student, with its scores."""
    variant, evaluation = distill_stage.open(run)[name], evaluate_stage.open(run).evaluation()
    return model_card(
        name=name,
        recipe=run.recipe,
        student=variant.record(),
        parts=PipelineParts.of(PipelineFiles.read(variant.pipeline)),
        facts=card_facts(run, name, variant.directory),
        scores=card_scores(evaluation, name),
        on_disk=card_sizes(evaluation, name),
        delivery=delivery(find_source(str(run.path), student=name)),
    )


def _write(run: Run) -> None:
    """Write `report.html`, add the scores to the model cards, and print the verdict and all paths."""
    recipe, variants = run.recipe, distill_stage.open(run)
    _write_texts(run)
    inputs = page_inputs(run)
    path = write_page(run, inputs)
    sentence, detail = verdict(inputs.evaluation)
    run.say(f"\n{sentence}", style="bold")
    run.say(detail)
    for caution in cautions(recipe, student_labels(recipe)):
        run.say(caution, style="yellow")
    run.say(f"report: {path}")
    for variant in variants.values():
        run.say(f"pipeline: {variant.pipeline}")
