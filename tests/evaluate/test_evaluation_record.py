from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluations import build_evaluation

from condistill.errors import CondistillError
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.record import METRICS_NAME, Comparison, Evaluation, Grid, GridEntry

SCORES = {"teacher": {"all": {"all_correct": (0.9, 0.01)}}, "small": {"all": {"latent_rmse": 0.3, "all_correct": 0.5}}}


def test_an_evaluation_reads_as_it_was_written(tmp_path: Path) -> None:
    evaluation = build_evaluation(SCORES)
    evaluation.write(tmp_path / METRICS_NAME)
    assert Evaluation.load(tmp_path) == evaluation
    held = json.loads((tmp_path / METRICS_NAME).read_text(encoding="utf-8"))
    assert held["format"] == 5
    assert held["models"]["teacher"]["scores"] == {"all": {"all_correct": {"value": 0.9, "spread": 0.01}}}


def test_the_first_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).write_text('{"format": 1, "models": {}}', encoding="utf-8")
    with pytest.raises(CondistillError, match=r"has format 1, .* reads format 5; run `condistill evaluate RECIPE`"):
        Evaluation.load(tmp_path)


def test_a_grid_reads_as_it_was_written(tmp_path: Path) -> None:
    entry = GridEntry(prompt="a", images={"teacher": "a.png"}, correct={"teacher": True})
    Grid(splits={"all": (entry,)}).write(tmp_path / "grid.json")
    assert Grid.load(tmp_path).splits["all"] == (entry,)


def test_metrics_are_listed_in_the_order_of_the_registry() -> None:
    evaluation = build_evaluation(SCORES)
    assert [metric.name for metric in evaluation.metrics] == ["all_correct", "latent_rmse"]
    assert evaluation.students == ["small"]
    assert evaluation.splits == ["all"]
    assert evaluation.score("teacher", "all", METRICS["latent_rmse"]) is None
    assert evaluation.score(None, "all", METRICS["latent_rmse"]) is None


def test_a_metric_that_is_not_registered_is_named() -> None:
    evaluation = build_evaluation({"small": {"all": {"beauty": 1.0}}})
    with pytest.raises(CondistillError, match="scores of beauty, which no installed package registers"):
        _ = evaluation.metrics


def test_figures_are_grouped_by_split_and_cost() -> None:
    figures = build_evaluation(SCORES).models["small"].figures()
    assert figures["all"] == {"latent_rmse": 0.3, "all_correct": 0.5}
    assert figures["compute"]["train_sec"] == 12.5
    assert set(figures) == {"all", "sampling", "size", "speed", "compute"}


@pytest.mark.parametrize(("images", "separates"), [(4, False), (5, True)])
def test_few_images_never_separate_two_models(images: int, separates: bool) -> None:
    ends = {"difference": 0.1, "low": 0.015, "high": 0.2}
    found = Comparison(metric="latent_rmse", split="all", one="small", other="large", images=images, **ends)
    assert found.separates is separates
