"""Tests of merged scores: they are like any other score, against numpy, and are kept for the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evaluated import ToyFamily, toy_engine, toy_rounds
from evaluations import build_evaluation

from condistill.evaluate.export_images import Image
from condistill.evaluate.merge_scores import _read as kept_scores
from condistill.evaluate.merge_scores import joined, keep_scores, merge_again, merge_scores, scores_directory
from condistill.evaluate.outside import OutsideScores
from condistill.evaluate.outside_metric import OutsideRecord
from condistill.evaluate.record import Evaluation, measured_metrics
from condistill.evaluate.results import Job
from condistill.run.stage_directory import StageDir

RECORD = OutsideRecord(label="HPSv3", direction="higher")
IMAGES = [
    Image(10 * seed + number, seed, number, "seen" if number < 6 else "unseen", f"prompt {number}")
    for seed in (0, 1)
    for number in range(10)
]


def scores_of(*models: str, shift: float = 0.0) -> OutsideScores:
    """Return random scores; each model's are 0.5 above those of the one before, image by image."""
    noise = np.random.default_rng(0).normal(size=len(IMAGES))
    values = {
        model: {(i.seed, i.number): float(noise[i.index] + 0.5 * place + shift) for i in IMAGES}
        for place, model in enumerate(models)
    }
    return OutsideScores({"hpsv3": RECORD}, {"hpsv3": values})


def evaluation() -> Evaluation:
    scores = {"seen": {"latent_rmse": 0.3}, "unseen": {}, "all": {"latent_rmse": 0.4}}
    return build_evaluation({"small": scores, "large": scores}, seeds=(0, 1))


def test_a_merged_score_is_a_score_of_every_split_with_its_interval() -> None:
    scores = scores_of("teacher", "small", "large")
    merged = merge_scores(evaluation(), scores, IMAGES)
    values = scores.values["hpsv3"]["small"]
    for split, chosen in (("seen", range(6)), ("unseen", range(6, 10)), ("all", range(10))):
        score = merged.models["small"].scores[split]["hpsv3"]
        means = [np.mean([values[seed, number] for number in chosen]) for seed in (0, 1)]
        assert score.value == pytest.approx(np.mean(means))
        assert score.spread == pytest.approx(np.std(means, ddof=1))
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
    assert merged.models["small"].scores["all"]["latent_rmse"].value == 0.4
    (metric,) = [each for each in merged.metrics if each.name == "hpsv3"]
    assert (metric.label, metric.direction, merged.metrics[-1]) == ("HPSv3", "higher", metric)
    assert measured_metrics([merged.models["small"]])[-1] is metric


def test_models_are_compared_image_by_image() -> None:
    merged = merge_scores(evaluation(), scores_of("teacher", "small", "large"), IMAGES)
    metric = merged.metrics[-1]
    for one, other, difference in (("small", "teacher", 0.5), ("large", "teacher", 1.0), ("large", "small", 0.5)):
        found = merged.comparison(one, other, "all", metric)
        assert found is not None
        assert found.difference == pytest.approx(difference)
        assert found.separates
        assert found.images == 20


def test_groups_have_scores_of_their_own() -> None:
    groups = {"concept": {"fox": {(0, 1), (1, 1)}, "cat": {(0, 2)}}}
    scores = scores_of("teacher", "small")
    merged = merge_scores(evaluation(), scores, IMAGES, groups)
    values = scores.values["hpsv3"]["small"]
    assert merged.groups["concept"]["fox"]["small"]["hpsv3"].value == pytest.approx((values[0, 1] + values[1, 1]) / 2)
    assert set(merged.groups["concept"]) == {"fox", "cat"}


def test_scores_are_merged_again_instead_of_added(tmp_path: Path) -> None:
    once = merge_scores(evaluation(), scores_of("teacher", "small"), IMAGES)
    assert merge_scores(once, scores_of("teacher", "small"), IMAGES) == once
    shifted = merge_scores(once, scores_of("teacher", "small", shift=1.0), IMAGES)
    before, after = (each.models["small"].scores["all"]["hpsv3"].value for each in (once, shifted))
    assert after == pytest.approx(before + 1)
    shifted.write(tmp_path / "metrics.json")
    assert Evaluation.load(tmp_path) == shifted


def test_kept_scores_belong_to_the_images_they_were_made_of(tmp_path: Path) -> None:
    names = ("teacher", "small")
    directory = StageDir(tmp_path, "evaluation/scores", lambda: {"latents": "a"})
    assert kept_scores(directory, names, IMAGES) is None
    keep_scores(directory, scores_of("teacher"))
    kept = kept_scores(directory, names, IMAGES)
    assert kept == scores_of("teacher")
    both = joined(kept, scores_of("teacher", "small", shift=2.0))
    assert both == scores_of("teacher", "small", shift=2.0)
    assert joined(None, both) is both
    of_others = StageDir(tmp_path, "evaluation/scores", lambda: {"latents": "b"})
    assert kept_scores(of_others, names, IMAGES) is None
    of_others.is_costly = False
    keep_scores(of_others, scores_of("small"))
    assert kept_scores(of_others, names, IMAGES) == scores_of("small")


def test_kept_scores_that_cannot_be_merged_are_named_with_the_reason(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path, ToyFamily(), rounds=toy_rounds(2, (7,)))
    host, job = engine.host, Job(engine, engine.tasks[0].rounds, engine.tasks)
    merge_again(host, job, tmp_path, {})
    assert host.printed == []  # type: ignore[attr-defined]
    keep_scores(scores_directory(host, job), scores_of("teacher"))
    (tmp_path / "evaluation" / "scores" / "scores.json").write_text('{"format', encoding="utf-8")
    merge_again(host, job, tmp_path, {})
    (line,) = host.printed  # type: ignore[attr-defined]
    assert line.endswith(
        "scores.json is missing, damaged or was edited, so it is not merged; merge the scores again with --scores"
    )
