from __future__ import annotations

from typing import Any

import pytest

from condistill.config.recipe import Recipe
from condistill.config.sections import StudentSettings
from condistill.report.cautions import BK_SDM, PAPER, UsualTraining, cautions, usual_training


def recipe_with(student: dict[str, Any], *, teacher: str = "./mine", **sections: Any) -> Recipe:
    data = {"teacher": {"pipeline": teacher}, "prompts": {"files": ["a.txt"]}, "student": student, **sections}
    return Recipe.model_validate(data)


@pytest.mark.parametrize(
    ("student", "usual"),
    [
        ({"preset": "b-small"}, BK_SDM),
        ({"preset": "koala-700m"}, BK_SDM),
        ({"depth": 0.5}, BK_SDM),
        ({"preset": "c-base"}, PAPER),
        ({"width": 0.5}, PAPER),
        ({"target": {"params": 0.5}}, PAPER),
        ({"preset": "b-base", "width": 0.5}, PAPER),
        ({"preset": "b-base", "weights": "random"}, PAPER),
    ],
)
def test_the_usual_training_is_that_of_the_paper_that_made_such_students(
    student: dict[str, Any], usual: UsualTraining
) -> None:
    assert usual_training(StudentSettings.model_validate(student)) is usual


def test_a_training_shorter_than_usual_is_said_so_in_samples() -> None:
    variants: dict[str, Any] = {"a": {}, "b": {}, "c": {"distill": {"steps": 50_000, "batch_size": 256}}}
    recipe = recipe_with({"preset": "b-base"}, distill={"steps": 10_000, "batch_size": 64}, variants=variants)
    assert cautions(recipe) == [
        "Short training: a and b were trained on 640,000 samples (10,000 steps of 64), 5 % of the 12,800,000 of BK-SDM "
        "(50,000 steps of 256). Do not judge the method by it."
    ]
    assert cautions(recipe_with({"width": 0.5}, distill={"steps": 800_000, "batch_size": 128})) == []


def test_students_of_the_miniature_are_not_compared_with_full_size_ones() -> None:
    assert cautions(recipe_with({"width": 0.5}, teacher="miniature", distill={"steps": 500})) == []


def test_a_quick_run_is_labelled_first() -> None:
    found = cautions(recipe_with({"width": 0.5}, teacher="miniature", distill={"steps": 3}, quick=True))
    assert found[0] == "Quick run: a test of the set-up, not a student to use."
    assert found[1].startswith("Short training: random_conditioning was trained on 768 samples (3 steps of 256), 0.000")
