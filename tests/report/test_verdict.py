from __future__ import annotations

from typing import Any

import pytest
from evaluations import build_evaluation, build_references

from condistill.evaluate.record import Evaluation
from condistill.report import gap_closed, verdict
from condistill.report.agreement import closer_than_before
from condistill.report.verdict import subject


def shares(split: str = "unseen", *, images: int = 100, **correct: float) -> Evaluation:
    """Return an evaluation with these shares of correct images."""
    scores = {name: {split: {"all_correct": share}} for name, share in correct.items()}
    return build_evaluation(scores, images_per_split={split: images})


def test_the_share_of_the_gap_is_exact() -> None:
    assert gap_closed(0.2, 0.6, 0.7) == pytest.approx(0.8)
    assert gap_closed(0.2, 0.1, 0.7) == pytest.approx(-0.2)
    assert gap_closed(0.7, 0.8, 0.7) is None
    assert gap_closed(0.8, 0.8, 0.7) is None


def test_the_sentence_on_a_better_student_has_its_share_of_the_gap() -> None:
    sentence, detail = verdict(shares(teacher=0.88, plain=0.23, small=0.67))
    assert sentence == (
        "small generates 67 % of unseen prompts correctly, against 23 % for plain and 88 % for the teacher: "
        "it closes 68 % of the gap, at 27 % of the parameters."
    )
    assert detail == "An image takes 54 ms instead of 200 ms."


def test_a_student_worse_than_the_baseline_is_called_worse() -> None:
    sentence, _ = verdict(shares(teacher=0.88, plain=0.6, small=0.2))
    assert sentence == (
        "small does worse than plain: it generates 20 % of unseen prompts correctly, against 60 % for plain and "
        "88 % for the teacher, at 27 % of the parameters."
    )


def test_a_difference_within_the_noise_is_not_a_success() -> None:
    assert "too close to plain to call" in verdict(shares(teacher=0.9, plain=0.5, small=0.6))[0]
    many = shares(teacher=0.9, plain=0.5, small=0.6, images=10_000)
    assert "closes 25 % of the gap" in verdict(many)[0]
    scores: Any = {
        "teacher": {"unseen": {"all_correct": 0.9}},
        "plain": {"unseen": {"all_correct": (0.5, 0.06)}},
        "small": {"unseen": {"all_correct": 0.6}},
    }
    images = {"unseen": 10_000}
    assert "too close to plain to call" in verdict(build_evaluation(scores, images_per_split=images))[0]
    four_seeds = build_evaluation(scores, images_per_split=images, seeds=(0, 1, 2, 3))
    assert "closes 25 % of the gap" in verdict(four_seeds)[0]  # the error of a mean of four is half as large


def test_without_a_gap_none_is_closed() -> None:
    sentence, _ = verdict(shares(teacher=0.3, plain=0.4, small=0.9))
    assert "plain already reaches the teacher, so there was no gap to close" in sentence


def test_a_student_better_than_its_teacher_is_called_better() -> None:
    sentence, _ = verdict(shares(teacher=0.5, plain=0.2, small=0.8))
    assert "closes the whole gap and is better than its teacher" in sentence
    assert ": better than its teacher," in verdict(shares(teacher=0.5, only=0.8))[0]


def test_a_single_student_is_compared_with_its_teacher() -> None:
    sentence, _ = verdict(shares("all", teacher=0.8, plain=0.6))
    assert sentence == (
        "plain generates 60 % of all prompts correctly, against 80 % for the teacher: it keeps 75 % of that, "
        "at 27 % of the parameters."
    )
    assert "as good as its teacher" in verdict(shares(teacher=0.0, only=0.0))[0]


def test_the_baseline_is_a_variant_of_any_name_and_the_best_other_student_is_the_subject() -> None:
    scores = {name: {"all": {"all_correct": share}} for name, share in {"a": 0.9, "b": 0.5, "c": 0.7}.items()}
    assert subject(build_evaluation(scores)) == "a"
    evaluation = build_evaluation({"teacher": {"all": {"all_correct": 1.0}}, **scores}, baseline="a")
    assert subject(evaluation) == "c"
    assert verdict(evaluation)[0].startswith("c does worse than a: it generates 70 %")
    alone = build_evaluation({"a": {}}, baseline="a")
    assert subject(alone) == "a"


def test_without_a_classifier_the_verdict_is_size_time_and_distance_to_the_teacher() -> None:
    scores = {"plain": {"unseen": {"latent_rmse": 0.61}}, "small": {"unseen": {"latent_rmse": 0.42}}}
    sentence, detail = verdict(build_evaluation(scores, classifier="none"))
    assert sentence == (
        "small has 27 % of the teacher's parameters and generates an image in 27 % of its time; how good its images "
        "are was not measured."
    )
    assert detail == (
        "Agreement with the teacher: Latent RMSE 0.420 on unseen prompts. An image takes 54 ms instead of 200 ms. No "
        "classifier and no network was given, so nothing but the distance to the teacher was measured: judge by the "
        "pictures, the worst prompts first, and name networks in `evaluate.networks`."
    )


def test_a_metric_where_lower_is_better_is_compared_the_other_way_round() -> None:
    scores = {name: {"all": {"frechet_classifier": d}} for name, d in {"teacher": 2, "plain": 10, "small": 4}.items()}
    sentence, _ = verdict(build_evaluation(scores))
    assert sentence == (
        "small has a Fréchet distance of 4.00 on all prompts, against 10.0 for plain and 2.00 for the teacher: "
        "it closes 75 % of the gap, at 27 % of the parameters."
    )
    del scores["plain"]
    assert "for the teacher: worse than its teacher, at 27 %" in verdict(build_evaluation(scores))[0]


def test_the_second_line_has_the_seen_prompts() -> None:
    correct = {"teacher": (0.88, 0.93), "plain": (0.23, 0.91), "small": (0.67, 0.9)}
    scores = {name: {"unseen": {"all_correct": u}, "seen": {"all_correct": s}} for name, (u, s) in correct.items()}
    assert verdict(build_evaluation(scores))[1].startswith(
        "On seen prompts: 90 %, against 91 % for plain and 93 % for the teacher. "
    )


def test_a_student_without_any_score_has_size_and_time_only() -> None:
    evaluation = build_evaluation({"teacher": {"all": {"all_correct": 0.8}}, "small": {}})
    assert verdict(evaluation)[0] == (
        "small has 27 % of the teacher's parameters and generates an image in 27 % of its time; how good its images "
        "are was not measured."
    )


def with_time(evaluation: Evaluation, name: str, **speed: float) -> Evaluation:
    model = evaluation.models[name]
    changed = model.model_copy(update={"speed": model.speed.model_copy(update=speed)})
    return evaluation.model_copy(update={"models": {**evaluation.models, name: changed}})


def test_a_difference_of_times_inside_their_spread_is_not_quoted() -> None:
    evaluation = build_evaluation({"small": {"all": {"latent_rmse": 0.4}}})
    slow = with_time(evaluation, "small", sec_per_image=0.17, median_sec_per_image=0.25, relative_time=0.85)
    sentence, detail = verdict(slow)
    assert sentence.startswith("small has 27 % of the teacher's parameters and takes about as long for an image;")
    assert "An image takes 170 ms, and 200 ms with the teacher: a difference within the spread of times." in detail
    fast = with_time(evaluation, "small", sec_per_image=0.17, median_sec_per_image=0.18, relative_time=0.85)
    assert "in 85 % of its time" in verdict(fast)[0]
    assert "An image takes 170 ms instead of 200 ms." in verdict(fast)[1]


def test_a_difference_from_the_teacher_within_the_error_is_not_called_better_or_worse() -> None:
    for share, words in ((0.86, "as good as its teacher, within the error"), (0.91, "as good as its teacher, within")):
        assert words in verdict(shares(teacher=0.88, only=share))[0]
    assert "it closes the whole gap, at 27 %" in verdict(shares(teacher=0.88, plain=0.2, small=0.9))[0]
    assert (
        "it closes 97 % of the gap; the rest is within the error, at"
        in (verdict(shares(teacher=0.88, plain=0.2, small=0.86))[0])
    )


def test_a_gap_within_the_error_is_no_gap() -> None:
    sentence, _ = verdict(shares(teacher=0.9, plain=0.87, small=0.99))
    assert "plain reaches the teacher within the error, so there was no gap to close" in sentence


def test_distances_within_the_error_are_too_close_to_call() -> None:
    scores: Any = {name: {"all": {"latent_rmse": (rmse, 0.2)}} for name, rmse in {"plain": 0.4, "small": 0.42}.items()}
    assert subject(build_evaluation(scores)) == "small"  # plain is the baseline
    scores["tiny"] = scores.pop("plain")
    assert "The evidence does not separate tiny from small." in verdict(build_evaluation(scores))[1]


# the references of a distance


@pytest.mark.parametrize(
    ("now", "before", "other", "expected"),
    [
        (
            0.3,
            1.2,
            1.5,
            "small follows its teacher closely: Latent RMSE 0.300 on unseen prompts, against 1.20 before training and "
            "1.50 between two seeds of the teacher; that is 75 % less than before training.",
        ),
        (
            1.6,
            1.2,
            1.5,
            "small is no closer to its teacher than before training: Latent RMSE 1.60 on unseen prompts, against 1.20 "
            "before training and 1.50 between two seeds of the teacher.",
        ),
        (
            0.3,
            1.2,
            None,
            "small is closer to its teacher than before training: Latent RMSE 0.300 on unseen prompts, against 1.20 "
            "before training; that is 75 % less than before training.",
        ),
        (
            4.91,
            7.0,
            4.6,
            "small is still far from its teacher: Latent RMSE 4.91 on unseen prompts, against 7.00 before training and "
            "4.60 between two seeds of the teacher; that is 30 % less than before training.",
        ),
        (
            0.28,
            7.0,
            0.12,
            "small is much closer to its teacher than before training, but not as close as another seed of the "
            "teacher: Latent RMSE 0.280 on unseen prompts, against 7.00 before training and 0.120 between two seeds of "
            "the teacher; that is 96 % less than before training.",
        ),
        (
            1.55,
            7.0,
            1.5,
            "small is about as close to its teacher as another seed of the teacher: Latent RMSE 1.55 on unseen "
            "prompts, against 7.00 before training and 1.50 between two seeds of the teacher; that is 78 % less than "
            "before training.",
        ),
    ],
)
def test_a_distance_is_compared_with_the_student_before_training_and_another_seed(
    now: float, before: float, other: float | None, expected: str
) -> None:
    references = build_references(other_seed=other, small=before)
    evaluation = build_evaluation({"small": {"unseen": {"latent_rmse": now}}}, references=references)
    assert closer_than_before(evaluation, "small") == expected
    headline, detail = verdict(evaluation)
    assert detail.startswith(expected)
    assert headline.startswith(expected.partition(":")[0])  # the words, not a number without a scale


def test_without_weights_before_training_a_model_is_not_still_far_from_its_teacher() -> None:
    evaluation = build_evaluation(
        {"foreign": {"unseen": {"latent_rmse": 5.0}}}, references=build_references(other_seed=4.0)
    )
    assert verdict(evaluation)[0].startswith("foreign is further from its teacher than another seed of the teacher")


def test_set_metrics_of_one_seed_do_not_decide_by_their_last_digit() -> None:
    values = {"teacher": 12.02, "plain": 12.03, "small": 12.01}
    scores: Any = {name: {"all": {"fd_dinov2": value}} for name, value in values.items()}
    assert "too close to plain to call" in verdict(build_evaluation(scores))[0]
    scores["plain"] = {}
    assert "as good as its teacher, within the error" in verdict(build_evaluation(scores))[0]


def test_the_verdict_says_what_is_missing_next_to_a_distance_of_sets_after_another_headline() -> None:
    scores: Any = {
        "teacher": {"all": {"clip_score": 0.31, "fid": 10.0}},
        "small": {"all": {"clip_score": 0.30, "fid": 14.0}},
    }
    headline, detail = verdict(build_evaluation(scores))
    assert "CLIP score" in headline
    assert "FID 14.0" in detail
    assert "FID compares whole sets of images and can mislead alone; not measured: precision and recall." in detail


def test_only_a_share_is_kept_in_percent() -> None:
    scores: Any = {"teacher": {"all": {"pickscore": 21.0}}, "small": {"all": {"pickscore": 18.0}}}
    assert verdict(build_evaluation(scores))[0].startswith(
        "small has a PickScore of 18.0 on all prompts, against 21.0 for the teacher: worse than its teacher, at"
    )


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("fid", "an FID"),
        ("fd_dinov2", "an FD-DINOv2"),
        ("inception_score", "an Inception score"),
        ("hpsv2", "an HPSv2"),
        ("kid", "a KID"),
        ("cmmd", "a CMMD"),
        ("clip_score", "a CLIP score"),
    ],
)
def test_metrics_have_the_article_with_which_they_are_spoken(metric: str, words: str) -> None:
    assert f"small has {words} of" in verdict(build_evaluation({"small": {"all": {metric: 1.0}}}))[0]


def test_without_references_nothing_is_compared() -> None:
    evaluation = build_evaluation({"small": {"unseen": {"latent_rmse": 0.3}}})
    assert closer_than_before(evaluation, "small") == ""
    references = build_references(other_seed=None, other=1.0)
    evaluation = build_evaluation({"small": {"unseen": {"latent_rmse": 0.3}}}, references=references)
    assert closer_than_before(evaluation, "small") == ""
