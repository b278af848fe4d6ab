from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from condistill.config.distill import DistillSettings
from condistill.errors import CondistillError
from condistill.students.variants import check_steps
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import END, SolverGrid


def test_a_grid_has_the_timesteps_of_ddim_from_the_noisiest(tiny_family: Family) -> None:
    grid = SolverGrid(tiny_family.noise, 4)
    assert len(grid) == 4
    assert grid.first == 999
    assert grid.below(torch.tensor([999, 749, 499, 249])).tolist() == [749, 499, 249, END]


def test_a_timestep_between_two_of_the_grid_is_followed_by_the_lower_one(tiny_family: Family) -> None:
    grid = SolverGrid(tiny_family.noise, 4)
    assert grid.below(torch.tensor([998, 750, 100, 0])).tolist() == [749, 749, END, END]


def test_random_timesteps_of_the_grid_are_equally_likely_and_rise_with_the_number(tiny_family: Family) -> None:
    timesteps = SolverGrid(tiny_family.noise, 4).draw(torch.linspace(0, 0.9999, 400))
    assert torch.equal(timesteps, timesteps.sort().values)
    assert torch.bincount(timesteps)[[249, 499, 749, 999]].tolist() == [100, 100, 100, 100]


@pytest.mark.parametrize("count", [1, 7, 61, 103, 1000])
def test_a_grid_has_one_timestep_per_step_and_none_below_zero(tiny_family: Family, count: int) -> None:
    timesteps = tiny_family.noise.solver_timesteps(count)
    assert len(timesteps) == count
    assert timesteps.min() >= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"few_steps": {"num_inference_steps": 6}}, "can be divided evenly into 1, 2, 4, 5, 8, 10, "),
        ({"few_steps": {"num_inference_steps": 1000}}, "can be divided evenly into 1, 2, 4, 5, 8, 10, "),
        ({"path": {"num_inference_steps": 2000}}, "the teacher has 1000 timesteps"),
        (
            {"few_steps": {"method": "consistency", "num_inference_steps": 4, "solver_steps": 30}},
            "few_steps.solver_steps is 30; for 4 steps or more, 1000 timesteps can be divided evenly into 4, 5, 8, ",
        ),
        ({"few_steps": {"method": "consistency", "num_inference_steps": 100, "solver_steps": 1000}}, " 100, 125, "),
    ],
)
def test_steps_that_do_not_divide_the_timesteps_are_refused(
    tiny_family: Family, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CondistillError, match=re.escape(message)):
        check_steps(tiny_family, DistillSettings.model_validate(settings))


@pytest.mark.parametrize(
    "few_steps",
    [
        {"num_inference_steps": 500, "teacher_steps": 2},
        {"method": "consistency", "num_inference_steps": 500, "solver_steps": 500},
    ],
)
def test_steps_that_divide_the_timesteps_are_accepted(tiny_family: Family, few_steps: dict[str, Any]) -> None:
    check_steps(tiny_family, DistillSettings(few_steps=few_steps))
