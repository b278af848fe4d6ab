"""A metric from outside the package is one class and one line, and is shown everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluations import build_evaluation
from samples import Brightness

from condistill.config.recipe import Recipe
from condistill.evaluate.measure import Measurement, Subject
from condistill.evaluate.metrics import register_metric
from condistill.evaluate.record import METRICS_NAME, Evaluation, Grid
from condistill.evaluate.rounds import Round
from condistill.report import ReportInputs, verdict, write_report
from condistill.report.tables import card_scores
from condistill.workflow.sweep_table import measured, table

RECIPE = Recipe.parse("teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-small}\n")


@pytest.fixture
def evaluation(own_registries: None, tmp_path: Path) -> Evaluation:
    """The evaluation of latents that a teacher and a student generated, read from `metrics.json`."""
    register_metric(Brightness)

    def model(value: int) -> Subject:
        return Subject(
            "model",
            lambda _, rows: np.full((len(rows), 4, 2, 2), value, np.float32),
            images=lambda _, rows: np.full((len(rows), 2, 2, 3), value, np.uint8),
        )

    measurement = Measurement([Round(0, ["a", "b"], {"all": slice(0, 2)})])
    teacher, small = model(40), model(60)
    scores = {"teacher": measurement.measure(teacher).scores, "small": measurement.measure(small, teacher).scores}
    assert "brightness" in scores["teacher"]["all"]
    values = {
        model: {split: {name: score.value for name, score in named.items()} for split, named in splits.items()}
        for model, splits in scores.items()
    }
    build_evaluation(values, classifier="none").write(tmp_path / METRICS_NAME)
    return Evaluation.load(tmp_path)


def test_a_registered_metric_is_in_metrics_json(evaluation: Evaluation, tmp_path: Path) -> None:
    models = json.loads((tmp_path / METRICS_NAME).read_text(encoding="utf-8"))["models"]
    assert models["small"]["scores"]["all"] == {"latent_rmse": {"value": 20.0}, "brightness": {"value": 60.0}}
    assert models["teacher"]["scores"]["all"] == {"brightness": {"value": 40.0}}


def test_a_registered_metric_is_in_the_report_and_on_the_card(evaluation: Evaluation, tmp_path: Path) -> None:
    inputs = ReportInputs(
        title="run",
        recipe=RECIPE,
        evaluation=evaluation,
        grid=Grid(splits={}),
        grid_folder=tmp_path,
        students={},
        histories={},
    )
    page = write_report(tmp_path / "report.html", inputs).read_text(encoding="utf-8")
    assert "Brightness&nbsp;" in page
    assert "Brightness: mean of all pixels." in page
    assert [row.label for row in card_scores(evaluation, "small").rows] == [
        "Latent RMSE, all prompts",
        "Brightness, all prompts",
    ]


def test_a_registered_metric_is_in_the_table_of_a_sweep(evaluation: Evaluation) -> None:
    run: Any = SimpleNamespace(group="", seed=0, cases=[SimpleNamespace(label="half", name="small")])
    head, teacher, half = table(measured([(run, evaluation)]))
    assert head[:3] == ["case", "Latent RMSE, all", "Brightness, all"]
    assert (teacher[:3], half[:3]) == (["teacher", "-", "40.0"], ["half", "20.0", "60.0"])


def test_a_metric_that_was_measured_alone_is_what_the_verdict_is_about(evaluation: Evaluation) -> None:
    scores: dict[str, Any] = {name: {"all": {"brightness": value}} for name, value in (("teacher", 40), ("small", 30))}
    assert verdict(build_evaluation(scores))[0].startswith(
        "small has a Brightness of 30.0 on all prompts, against 40.0 for the teacher: worse than its teacher"
    )
