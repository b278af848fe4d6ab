"""The report stage: one page for people, and a model card for every pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from condistill.distill import stage as distill_stage
from condistill.distill.stage import student_card
from condistill.evaluate import stage as evaluate_stage
from condistill.evaluate.stage import GRID_FOLDER, GRID_NAME, METRICS_NAME
from condistill.pipelines.sampling import SAMPLING_NAME, planned_sampling
from condistill.report.html import write_report
from condistill.report.verdict import verdict
from condistill.run.context import Run
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
    return run.path / REPORT_NAME


def _write(run: Run) -> None:
    """Write `report.html`, add the scores to the model cards, and print the verdict and all paths."""
    recipe, variants, evaluation = run.recipe, distill_stage.open(run), evaluate_stage.open(run)
    metrics: dict[str, Any] = _read(evaluation / METRICS_NAME)
    students = {}
    for name, variant in variants.items():
        student, settings = recipe.variant(name)
        shown = {"student": student.model_dump(by_alias=True), "distill": settings.model_dump(by_alias=True)}
        students[name] = {"kept": variant.record().kept, "settings": shown}
        write_text(variant.pipeline / "README.md", student_card(run, variant, metrics))
        write_text(variant.pipeline / SAMPLING_NAME, planned_sampling(recipe, name).to_json())
    path = write_report(
        open(run),
        recipe=recipe,
        metrics=metrics,
        grid=_read(evaluation / GRID_NAME),
        grid_folder=evaluation / GRID_FOLDER,
        histories={name: [r.model_dump() for r in variant.history()] for name, variant in variants.items()},
        students=students,
        title=run.path.resolve().name,
    )
    sentence, detail = verdict(metrics)
    run.say(f"\n{sentence}", style="bold")
    run.say(detail)
    run.say(f"report: {path}")
    for variant in variants.values():
        run.say(f"pipeline: {variant.pipeline}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
