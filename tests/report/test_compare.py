from __future__ import annotations

import pytest
from evaluations import build_evaluation

from condistill.evaluate.metrics import METRICS, Score
from condistill.report.compare import score_alike
from condistill.report.evidence import difference

RMSE, CORRECT = METRICS["latent_rmse"], METRICS["all_correct"]


def alike(one: Score, other: Score, *, images: int = 100, seeds: int = 1, share: bool = False) -> bool:
    return score_alike(CORRECT if share else RMSE, one, other, images=images, seeds=seeds)


def score(value: float, half: float | None = None, spread: float | None = None) -> Score:
    ends = {} if half is None else {"low": value - half, "high": value + half}
    return Score(value=value, spread=spread, **ends)


def test_intervals_decide_by_the_standard_error_of_the_difference() -> None:
    assert alike(score(1.0, 0.1), score(1.13, 0.1))  # 2 * 0.1 / 1.96 * sqrt(2) = 0.144
    assert not alike(score(1.0, 0.1), score(1.15, 0.1))  # although the intervals have values in common


def test_an_interval_counts_more_than_the_error_of_a_share_of_as_many_images() -> None:
    assert not alike(score(0.5, 0.01), score(0.55, 0.01), share=True)  # the formula: 2 * 0.07
    assert alike(score(0.5), score(0.55), share=True)


@pytest.mark.parametrize(("seeds", "expected"), [(1, True), (4, True), (100, False)])
def test_a_larger_spread_over_seeds_counts_and_shrinks_with_their_number(seeds: int, expected: bool) -> None:
    assert alike(score(1.0, 0.001, 0.1), score(1.12, 0.001, 0.1), seeds=seeds) == expected


def test_scores_of_unknown_error_differ_by_more_than_five_percent() -> None:
    assert alike(score(12.02), score(12.01))
    assert alike(score(1.0), score(1.0))
    assert alike(score(0.0), score(0.0))
    assert not alike(score(12.0), score(13.0))


def test_models_without_a_paired_comparison_may_differ_although_their_intervals_overlap() -> None:
    record = build_evaluation({"one": {"all": {"kid": 1.0}}, "other": {"all": {"kid": 1.2}}})
    ends = {"one": {"low": 0.88, "high": 1.12}, "other": {"low": 1.08, "high": 1.32}}
    scores = {
        name: {"all": {"kid": model.scores["all"]["kid"].model_copy(update=ends[name])}}
        for name, model in record.models.items()
        if name in ends
    }
    models = {
        name: model.model_copy(update={"scores": scores[name]} if name in scores else {})
        for name, model in record.models.items()
    }
    found = difference(record.model_copy(update={"models": models}), "one", "other", "all", METRICS["kid"])
    assert found is not None
    assert found.is_clear  # the standard error of the difference is 0.087
    assert found.is_better
