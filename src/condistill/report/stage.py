"""The report stage: one page for people, and a model card for every pipeline."""

from __future__ import annotations

from pathlib import Path

from condistill.distill import stage as distill_stage
from condistill.evaluate import stage as evaluate_stage
from condistill.pipelines.card import PipelineParts, is_edited, model_card
from condistill.pipelines.sampling import SAMPLING_NAME, planned_sampling
from condistill.report.cautions import cautions
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


def _write_card(run: Run, path: Path, card: str) -> None:
    """Replace a model card; one that the user edited is moved to `old/` first, which is printed."""
    known = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    if known and known != card and is_edited(known):
        run.directory.set_aside([path])
    write_text(path, card)


def _write(run: Run) -> None:
    """Write `report.html`, add the scores to the model cards, and print the verdict and all paths."""
    recipe, variants, finished = run.recipe, distill_stage.open(run), evaluate_stage.open(run)
    evaluation = finished.evaluation()
    students = {name: variant.record() for name, variant in variants.items()}
    for name, variant in variants.items():
        card = model_card(
            name=name,
            recipe=recipe,
            student=students[name],
            parts=PipelineParts.of(PipelineFiles.read(variant.pipeline)),
            scores=card_scores(evaluation, name),
            on_disk=card_sizes(evaluation, name),
        )
        _write_card(run, variant.pipeline / "README.md", card)
        write_text(variant.pipeline / SAMPLING_NAME, planned_sampling(recipe, name).to_json())
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
