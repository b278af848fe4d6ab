"""The report stage of a run: one page for people, a card for every pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condistill.distill.history import HISTORY_NAME, read_history
from condistill.distill.stage import STUDENT_NAME
from condistill.pipelines.sampling import SAMPLING_NAME
from condistill.report.html import write_report
from condistill.report.verdict import verdict
from condistill.utils.atomic import write_text

if TYPE_CHECKING:
    from condistill.workflow.compress import Compression

REPORT_NAME = "report.html"


def write_run_report(run: Compression, evaluation: Path) -> None:
    """Write `report.html`, put the scores on the pipelines' cards, and say where things are and what they show."""
    recipe = run.recipe
    metrics: dict[str, Any] = _read(evaluation / "metrics.json")
    histories, students = {}, {}
    for name in recipe.variants:
        folder = run.run_dir.path / "distill" / name
        histories[name] = read_history(folder / "checkpoints" / HISTORY_NAME)
        student, settings = recipe.variant(name)
        shown = {"student": student.model_dump(by_alias=True), "distill": settings.model_dump(by_alias=True)}
        students[name] = {"kept": _read(folder / STUDENT_NAME)["kept"], "settings": shown}
        write_text(run.pipeline_path(name) / "README.md", run.card(name, metrics))
        write_text(run.pipeline_path(name) / SAMPLING_NAME, run.sampling(name).to_json())
    path = write_report(
        run.run_dir.path / REPORT_NAME,
        recipe=recipe,
        metrics=metrics,
        grid=_read(evaluation / "grid.json"),
        grid_folder=evaluation / "grid",
        histories=histories,
        students=students,
        title=run.run_dir.path.resolve().name,
    )
    sentence, detail = verdict(metrics)
    run.say(f"\n{sentence}", style="bold")
    run.say(detail)
    run.say(f"report: {path}")
    for name in recipe.variants:
        run.say(f"pipeline: {run.pipeline_path(name)}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
