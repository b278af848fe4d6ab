from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from evaluations import build_comparison, build_evaluation, build_references
from histories import build_record

from condistill.config.recipe import Recipe
from condistill.distill.history import HistoryRecord
from condistill.evaluate.record import Evaluation, Grid
from condistill.report import ReportInputs
from condistill.report.next_steps import loss_trend, next_steps

RECIPE = Recipe.parse("teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-small}\n")


def losses(last: float, *, noise: float = 0.0, count: int = 40) -> list[HistoryRecord]:
    """Return a history whose loss falls by half, and then moves by a share `last` over its last half."""
    half = count // 2
    falling = [1 - 0.5 * step / half for step in range(half)]
    tail = [0.5 * (1 + last * step / half) for step in range(half)]
    values = [loss * (1 + noise * (-1) ** step) for step, loss in enumerate(falling + tail)]
    return [build_record(10 * (step + 1), loss=loss) for step, loss in enumerate(values)]


def actions(evaluation: Evaluation, **changes: Any) -> str:
    fields: dict[str, Any] = {"recipe": None, "grid": Grid(splits={}), "grid_folder": Path(), **changes}
    inputs = ReportInputs(title="run", evaluation=evaluation, **fields)
    return " ".join(f"{each.action} {each.evidence}" for each in next_steps(inputs))


def shares(**correct: tuple[float, float]) -> Evaluation:
    """Return shares of correct images on seen and unseen prompts."""
    scores = {
        name: {split: {"all_correct": value} for split, value in zip(("seen", "unseen"), values, strict=True)}
        for name, values in correct.items()
    }
    return build_evaluation(scores, images_per_split={"seen": 1000, "unseen": 1000})


@pytest.mark.parametrize(("last", "noise", "is_falling"), [(-0.3, 0.0, True), (0.0, 0.0, False), (-0.02, 0.3, False)])
def test_a_loss_falls_if_its_slope_is_larger_than_its_noise(last: float, noise: float, is_falling: bool) -> None:
    trend = loss_trend(losses(last, noise=noise))
    assert trend is not None
    assert trend.is_falling is is_falling
    assert loss_trend(losses(last, count=8)) is None
    assert loss_trend([build_record(step, loss=math.nan) for step in range(1, 41)]) is None


def test_a_loss_that_still_falls_asks_for_more_steps_and_a_flat_one_for_a_larger_student() -> None:
    worse = shares(teacher=(0.9, 0.9), small=(0.6, 0.6))
    falling = actions(worse, histories={"small": losses(-0.3)})
    assert "Train small for more steps (`distill.steps`). The loss still falls over the last fifth" in falling
    assert "larger student" not in falling
    flat = actions(worse, histories={"small": losses(0.0)})
    assert "Use a larger student than small" in flat
    assert "no longer falls (0.500 at the end), and it is clearly worse than its teacher on unseen prompts: " in flat
    assert "Correct 60 % against 90 %" in flat
    assert "more steps" not in flat


def test_without_quality_a_flat_student_that_is_far_from_its_teacher_is_too_small() -> None:
    references = build_references(other_seed=4.6, small=7.0)
    evaluation = build_evaluation({"small": {"unseen": {"latent_rmse": 4.91}}}, references=references)
    found = actions(evaluation, histories={"small": losses(0.0)})
    assert found.startswith("Measure the quality of the images: name `evaluate.networks.dinov2`")
    assert "no longer falls (0.500 at the end), and it is still far from its teacher: Latent RMSE 4.91" in found


def test_a_student_that_loses_more_on_unseen_prompts_than_its_teacher_needs_more_prompts() -> None:
    assert "From seen to unseen prompts small loses 50.0 in Correct, its teacher 5.0." in actions(
        shares(teacher=(0.95, 0.9), small=(0.9, 0.4))
    )
    assert "more prompts" not in actions(shares(teacher=(0.95, 0.6), small=(0.9, 0.55)))


def test_a_student_as_good_as_its_teacher_may_use_fewer_steps_and_be_smaller() -> None:
    found = actions(shares(teacher=(0.9, 0.9), small=(0.9, 0.9)))
    assert "Train small to sample in fewer steps (`distill.few_steps`" in found
    assert "an image takes 50 denoiser evaluations." in found
    assert "Try a smaller student." in found
    assert "smaller" not in actions(shares(teacher=(0.9, 0.9), small=(0.5, 0.5)))


def test_students_that_are_not_separated_need_more_images_and_how_many_is_named() -> None:
    evaluation = shares(teacher=(0.9, 0.9), a=(0.8, 0.8), b=(0.79, 0.79))
    compared = build_comparison("all_correct", "a", "b", difference=0.01, half=0.02, split="unseen", images=1000)
    found = actions(evaluation.model_copy(update={"comparisons": (compared,)}))
    assert "do not separate a from b; if the difference stays as it is, about 4,000 images would." in found


def test_a_quick_run_has_one_next_step() -> None:
    quick = RECIPE.model_copy(update={"quick": True})
    assert actions(shares(teacher=(0.9, 0.9), small=(0.1, 0.1)), recipe=quick).startswith(
        "Run the recipe without `quick`. This run only tested the set-up"
    )
    assert actions(build_evaluation({})) == ""
