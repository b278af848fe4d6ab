from __future__ import annotations

import math
from typing import Any

import pytest

from condistill.report import gap_closed, verdict


def _metrics(split: str = "unseen", *, images: int = 100, **rights: float) -> dict[str, Any]:
    models = {}
    for name, right in rights.items():
        parameters = 1000 if name == "teacher" else 270
        models[name] = {split: {"all_correct": right}, "size": {"parameters": parameters}}
    return {"classifier": "miniature", "images_per_split": {split: images}, "models": models}


def test_the_share_of_the_gap_is_exact() -> None:
    assert gap_closed(0.2, 0.6, 0.7) == pytest.approx(0.8)
    assert gap_closed(0.2, 0.1, 0.7) == pytest.approx(-0.2)
    assert gap_closed(0.7, 0.8, 0.7) is None
    assert gap_closed(0.8, 0.8, 0.7) is None


def test_a_better_student_is_told_with_its_share_of_the_gap() -> None:
    sentence, _ = verdict(_metrics(teacher=0.88, plain=0.23, random_conditioning=0.67))
    assert sentence == (
        "random_conditioning draws 67 % of unseen prompts all right, against 23 % for plain and 88 % for the teacher: "
        "it closes 68 % of the gap, at 27 % of the parameters."
    )


def test_a_worse_student_is_told_plainly() -> None:
    sentence, _ = verdict(_metrics(teacher=0.88, plain=0.6, random_conditioning=0.2))
    assert sentence.startswith("random_conditioning does worse than plain: it draws 20 %")
    assert "gap" not in sentence


def test_a_difference_within_the_noise_is_no_success() -> None:
    assert "too close to plain to call" in verdict(_metrics(teacher=0.9, plain=0.5, random_conditioning=0.6))[0]
    many = _metrics(teacher=0.9, plain=0.5, random_conditioning=0.6, images=10_000)
    assert "closes 25 % of the gap" in verdict(many)[0]
    many["models"]["plain"]["spread"] = {"unseen": {"all_correct": 0.06}}
    assert "too close to plain to call" in verdict(many)[0]
    assert "closes 25 % of the gap" in verdict({**many, "seeds": [0, 1, 2, 3]})[0]  # the error of a mean of four


def test_there_is_no_gap_where_plain_reaches_the_teacher() -> None:
    sentence, _ = verdict(_metrics(teacher=0.3, plain=0.4, random_conditioning=0.9))
    assert "no gap to close" in sentence


def test_a_student_above_its_teacher_is_told() -> None:
    sentence, _ = verdict(_metrics(teacher=0.5, plain=0.2, random_conditioning=0.8))
    assert "closes the whole gap and does better than its teacher" in sentence
    assert "more than its teacher" in verdict(_metrics(teacher=0.5, only=0.8))[0]


def test_one_student_is_measured_by_its_teacher() -> None:
    sentence, _ = verdict(_metrics("all", teacher=0.8, plain=0.6))
    assert sentence == (
        "plain draws 60 % of prompts all right, against 80 % for the teacher: it keeps 75 % of that, "
        "at 27 % of the parameters."
    )


def test_among_other_students_the_best_is_told() -> None:
    assert verdict(_metrics(teacher=0.8, plain=0.2, small=0.5, large=0.7))[0].startswith("large ")


def test_without_a_classifier_size_speed_and_distance_are_told() -> None:
    metrics = {
        "classifier": "none",
        "models": {
            "teacher": {"size": {"parameters": 1000}, "speed": {"sec_per_image": 0.2}},
            "plain": {"unseen": {"latent_rmse": 0.61}},
            "random_conditioning": {
                "unseen": {"latent_rmse": 0.42},
                "size": {"parameters": 270},
                "speed": {"sec_per_image": 0.1, "relative_time": 0.5},
            },
        },
    }
    sentence, detail = verdict(metrics)
    assert sentence == (
        "random_conditioning has 27 % of the teacher's parameters and draws an image in 50 % of its time; its latents "
        "are 0.420 (RMSE) away from the teacher's on unseen prompts, against 0.610 for plain."
    )
    assert "0.10 s instead of 0.20 s" in detail
    assert "No classifier" in detail


def test_without_a_classifier_a_student_further_away_than_plain_is_told() -> None:
    models = {"plain": {"all": {"latent_rmse": 0.2}}, "random_conditioning": {"all": {"latent_rmse": 0.4}}}
    assert "0.200 for plain, which is nearer" in verdict({"models": models})[0]


def test_the_second_line_tells_the_seen_prompts() -> None:
    metrics = _metrics(teacher=0.88, plain=0.23, random_conditioning=0.67)
    for name, right in {"teacher": 0.93, "plain": 0.91, "random_conditioning": 0.9}.items():
        metrics["models"][name]["seen"] = {"all_correct": right}
    assert verdict(metrics)[1] == "On seen prompts: 90 %, against 91 % for plain and 93 % for the teacher."


@pytest.mark.parametrize("metrics", [{}, {"models": {}}, {"models": {"teacher": {"all": {"all_correct": 0.8}}}}])
def test_without_a_student_nothing_is_claimed(metrics: dict[str, Any]) -> None:
    assert verdict(metrics) == ("No student has been measured yet.", "")


@pytest.mark.parametrize("right", [math.nan, math.inf, None])
def test_figures_that_are_no_numbers_are_not_told(right: Any) -> None:
    metrics = _metrics(teacher=0.8, plain=0.5, random_conditioning=right)
    sentence, _ = verdict(metrics)
    assert "nan" not in sentence
    assert "inf" not in sentence
    assert sentence == "random_conditioning has 27 % of the teacher's parameters."


def test_a_teacher_that_draws_nothing_right_divides_by_nothing() -> None:
    assert "as many as its teacher" in verdict(_metrics(teacher=0.0, only=0.0))[0]
