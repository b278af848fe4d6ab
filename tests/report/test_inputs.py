from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluations import build_comparison, build_evaluation, build_references

from condistill.config.recipe import Recipe
from condistill.evaluate.record import Grid, GridEntry
from condistill.report import ReportInputs
from condistill.report.inputs import labelled, student_labels


def recipe(student: dict[str, Any], **sections: Any) -> Recipe:
    data = {"teacher": {"pipeline": "./mine"}, "prompts": {"files": ["a.txt"]}, "student": student, **sections}
    return Recipe.model_validate(data)


@pytest.mark.parametrize(
    ("student", "label"),
    [
        ({"preset": "b-small"}, "b-small"),
        ({"width": 0.5}, "width 0.5"),
        ({"preset": "b-base", "width": 0.5}, "b-base, width 0.5"),
        ({"depth": 0.25}, "depth 0.25"),
        ({"target": {"params": 0.4}}, "0.4x params"),
        ({"width": (32, 64)}, "student"),
    ],
)
def test_the_only_student_of_a_recipe_is_named_after_its_size(student: dict[str, Any], label: str) -> None:
    assert student_labels(recipe(student)) == {"random_conditioning": label}


def test_names_that_the_recipe_gives_are_kept() -> None:
    assert student_labels(recipe({"preset": "b-small"}, variants={"mine": {}})) == {}
    assert student_labels(recipe({"width": 0.5}, variants={"plain": {}, "random_conditioning": {}})) == {}
    assert student_labels(None) == {}


def test_every_part_of_the_inputs_has_the_new_name() -> None:
    name = "random_conditioning"
    entry = GridEntry(prompt="a", images={name: "a.png"}, correct={name: True}, values={name: 0.5})
    evaluation = build_evaluation(
        {name: {"all": {"latent_rmse": 0.5}}},
        baseline=name,
        references=build_references(other_seed=1.0, random_conditioning=2.0),
        comparisons=(build_comparison("latent_rmse", name, "teacher", difference=1.0, half=0.5),),
        groups={"concept": {"star": {name: {}}}},
    )
    inputs = ReportInputs(
        title="run",
        recipe=recipe({"preset": "b-small"}),
        evaluation=evaluation,
        grid=Grid(splits={"all": (entry,)}, worst=(entry,), best=(entry,)),
        grid_folder=Path(),
        histories={name: []},
    )
    found = labelled(inputs)
    assert name not in repr((found.evaluation, found.grid, found.histories))
    assert found.variants == {"b-small": name}
    assert found.variant("b-small") == name
    assert labelled(found) == found
