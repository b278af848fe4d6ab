"""Tests of scores from outside: the schema, and every mistake, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from condistill.errors import CondistillError
from condistill.evaluate.export_images import Image
from condistill.evaluate.outside import OutsideScores, check_scores, load_scores

IMAGES = [Image(0, 5, 0, "seen", "a"), Image(1, 5, 1, "unseen", "b"), Image(2, 7, 0, "seen", "a")]
MODELS = ("teacher", "student")
HPS = {"hpsv3": {"label": "HPSv3", "direction": "higher"}}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(scores: Any, metrics: Any = HPS, name: str = "scores.json", **others: Any) -> Path:
        content = {"format": 1, "metrics": metrics, "scores": scores, **others}
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / name

    return write_file


def check(*files: Path) -> OutsideScores:
    return check_scores(load_scores(files), models=MODELS, images=IMAGES)


def rows(model: str, *values: Any) -> list[dict[str, Any]]:
    return [{"model": model, "image": f"{index:012d}.png", "hpsv3": value} for index, value in enumerate(values)]


def test_images_are_named_by_file_or_by_seed_and_number(write: Write) -> None:
    by_number = [{"model": "student", "seed": 5, "number": 1, "hpsv3": 2}]
    found = check(write([*rows("student", 1.5, 2, -3.25), *by_number, *rows("teacher", 4, 5, 6)]))
    assert found.values == {
        "hpsv3": {
            "student": {(5, 0): 1.5, (5, 1): 2.0, (7, 0): -3.25},
            "teacher": {(5, 0): 4.0, (5, 1): 5.0, (7, 0): 6.0},
        }
    }
    assert found.metrics["hpsv3"].label == "HPSv3"


def test_each_model_can_have_a_file_of_its_own(write: Write) -> None:
    one, other = write(rows("teacher", 1, 2, 3), name="one.json"), write(rows("student", 1, 2, 3), name="two.json")
    assert check(one, other).models("hpsv3") == ["teacher", "student"]


def test_all_mistakes_are_listed_at_once(write: Write) -> None:
    wrong = [
        {"model": "studnet", "image": "000000000000.png", "hpsv3": 1},
        {"model": "student", "image": "000000000009.png", "hpsv3": 1},
        {"model": "student", "image": "12.png", "hpsv3": 1},
        {"model": "student", "seed": 5, "hpsv3": 1},
        {"model": "student", "seed": 5, "number": 9, "hpsv3": 1},
        {"model": "student", "image": "000000000000.png", "number": 9, "hpsv3": 1},
        {"model": "student", "image": "000000000000.png", "hpsv3": float("nan")},
        {"model": "student", "image": "000000000000.png", "hpsv3": "high"},
        {"model": "student", "image": "000000000000.png", "hpsv": 1, "hpsv3": 2},
        {"model": "student", "image": "000000000000.png", "hpsv3": 3},
        "a row",
    ]
    with pytest.raises(CondistillError, match=r"scores\.json cannot be merged, 12 mistake\(s\)") as refused:
        check(write(wrong))
    lines = str(refused.value).splitlines()[1:]
    expected = [
        "scores[0]: there is no model 'studnet'; did you mean 'student'?",
        "scores[1]: image 000000000009.png is outside of the evaluation, which has 3 images per model",
        "scores[2]: image is '12.png', which is no name such as 000000000012.png",
        "scores[3]: seed and number are whole numbers, and both are needed",
        "scores[4]: seed 5, number 9 is outside of the evaluation",
        "scores[5]: name the image by its file (image), or by seed and number, and not by both",
        "scores[6]: hpsv3 is nan, which is no number between -1e+30 and 1e+30",
        "scores[7]: hpsv3 is 'high', which is no number between -1e+30 and 1e+30",
        "scores[8]: 'hpsv' is not in metrics; did you mean 'hpsv3'?",
        "scores[9]: hpsv3 of student and seed 5, number 0 is given twice, with different values; remove one",
        "scores[10] is no object; write one with model, image and scores",
    ]
    assert [line.removeprefix("  scores.json, ") for line in lines[:-1]] == expected
    assert lines[-1] == ("  hpsv3 of student is missing for 2 of 3 images: 000000000001.png, 000000000002.png")


def test_a_score_of_any_size_is_a_number_or_a_mistake(write: Write) -> None:
    found = check(write(rows("student", 2**53 + 1, -(2**53) - 1, 1e30)))
    assert found.values["hpsv3"]["student"] == {(5, 0): 2.0**53, (5, 1): -(2.0**53), (7, 0): 1e30}
    for value in (10**400, -1.7e308, float("inf")):
        with pytest.raises(CondistillError, match=r"which is no number between -1e\+30 and 1e\+30"):
            check(write(rows("student", 1, value, 3)))


def test_of_many_mistakes_the_first_are_listed(write: Write) -> None:
    with pytest.raises(CondistillError, match=r"50 mistake\(s\)(.|\n)*and 30 more"):
        check(write(rows("nobody", *range(49))))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"latent_rmse": HPS["hpsv3"]}, "is the name of a metric that condistill computes"),
        ({"image": HPS["hpsv3"]}, "cannot name a metric: use a-z, 0-9 and _"),
        ({"HPS": HPS["hpsv3"]}, "cannot name a metric"),
        ({"x": {"direction": "higher"}}, "label: field required"),
        ({"x": {"label": "X", "direction": "up"}}, "direction: input should be 'higher' or 'lower'"),
        ({"x": {"label": "X", "direction": "lower"}}, "x has no score of any image"),
        ({"x": 3}, "metrics.x: it: input should be a valid dictionary"),
    ],
)
def test_metrics_that_cannot_be_used_are_named(write: Write, metrics: Any, message: str) -> None:
    with pytest.raises(CondistillError, match=message):
        check(write([{"model": "student", "seed": 5, "number": 0}], metrics))


def test_two_files_describe_a_metric_alike(write: Write) -> None:
    one = write(rows("teacher", 1, 2, 3), name="one.json")
    two = write(rows("student", 1, 2, 3), {"hpsv3": {"label": "HPS", "direction": "higher"}}, "two.json")
    with pytest.raises(CondistillError, match=r"two\.json, metrics\.hpsv3 is described in another way"):
        check(one, two)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("{", "is not JSON"),
        ("[]", "is no JSON object"),
        ('{"format": 2}', "has format 2, and this version of condistill reads 1"),
        ('{"format": 1, "metric": {}}', "has the key 'metric'"),
        ('{"format": 1, "metrics": {}}', "needs metrics"),
        ('{"format": 1, "metrics": {"x": {}}, "scores": []}', "needs scores"),
    ],
)
def test_files_of_another_form_are_refused_before_anything_is_generated(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "s.json").write_text(text, encoding="utf-8")
    with pytest.raises(CondistillError, match=message):
        load_scores([tmp_path / "s.json"])
