from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_transformers import build

from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.students.choice import student_settings
from condistill.students.derive import derive_student
from condistill.teachers.family import Family
from condistill.utils.meta import parameters


@pytest.mark.parametrize(
    ("choice", "settings"),
    [
        ("b-base", {"preset": "b-base"}),
        (0.5, {"width": 0.5}),
        (1, {"width": 1.0}),
        ({"keep": {"down_blocks.0": [0]}}, {"keep": {"down_blocks.0": (0,)}}),
        (StudentSettings(width=0.25), {"width": 0.25}),
    ],
)
def test_a_student_is_chosen_by_a_short_form(choice: Any, settings: Mapping[str, Any]) -> None:
    assert student_settings(choice, can_cut_width=True) == StudentSettings.model_validate(settings)


def test_a_number_is_a_depth_where_the_teacher_is_a_transformer() -> None:
    assert student_settings(0.5, can_cut_width=False) == StudentSettings(depth=0.5)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("b-bass", "the student 'b-bass' is no preset; did you mean 'b-base'?"),
        (1.5, "width is 1.5; give the channels of every stage as a list"),
        ({"widht": 0.5}, "widht"),
        ({}, "give a preset, a width, a depth, a target or the layers to keep"),
        (True, "a student cannot be chosen by a bool; give the name of a preset, a number such as 0.5"),
        (None, "a student cannot be chosen by a NoneType"),
    ],
)
def test_a_choice_that_makes_no_student_is_refused(choice: Any, message: str) -> None:
    with pytest.raises(CondistillError) as caught:
        student_settings(choice, can_cut_width=True)
    assert message in str(caught.value)


def test_a_student_is_derived_from_a_teacher_a_pipeline_or_a_denoiser(tiny_family: Family) -> None:
    pipeline = tiny_family.pipeline
    students = [derive_student(teacher, "b-base") for teacher in (tiny_family, pipeline, pipeline.unet)]
    states = [student.denoiser.state_dict() for student in students]
    assert isinstance(students[0].denoiser, UNet2DConditionModel)
    assert parameters(students[0].denoiser) < parameters(pipeline.unet)
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


def test_a_student_of_a_transformer_is_derived_by_a_number() -> None:
    teacher = build("flux")
    assert parameters(derive_student(teacher, 0.5).denoiser) < parameters(teacher)
