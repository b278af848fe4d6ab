from __future__ import annotations

import torch

from condistill.distill.solver import END, SolverGrid
from condistill.teachers.family import Family


def test_the_grid_is_what_ddim_visits_from_the_noisiest_timestep_on(tiny_family: Family) -> None:
    grid = SolverGrid(tiny_family, 4)
    assert len(grid) == 4
    assert grid.first == 999
    assert grid.below(torch.tensor([999, 749, 499, 249])).tolist() == [749, 499, 249, END]


def test_from_between_two_timesteps_the_lower_one_comes_next(tiny_family: Family) -> None:
    grid = SolverGrid(tiny_family, 4)
    assert grid.below(torch.tensor([998, 750, 100, 0])).tolist() == [749, 749, END, END]


def test_timesteps_of_the_grid_are_equally_likely_and_rise_with_the_number(tiny_family: Family) -> None:
    grid = SolverGrid(tiny_family, 4)
    drawn = grid.draw(torch.linspace(0, 0.9999, 400))
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.bincount(drawn)[[249, 499, 749, 999]].tolist() == [100, 100, 100, 100]
