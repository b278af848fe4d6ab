"""The timesteps a solver visits, from pure noise to the end."""

from __future__ import annotations

import torch
from torch import Tensor

from condistill.teachers.family import Family

END = -1
"""The timestep of the finished latent: what follows a solver's last one."""


class SolverGrid:
    """The timesteps of so many solver steps."""

    def __init__(self, family: Family, num_inference_steps: int) -> None:
        self._rising = family.solver_timesteps(num_inference_steps).flip(0)

    def __len__(self) -> int:
        return len(self._rising)

    @property
    def first(self) -> Tensor:
        """Where sampling begins: one timestep, of no dimension."""
        return self._rising[-1]

    def draw(self, uniform: Tensor) -> Tensor:
        """Timesteps `[B]` of the grid, all equally likely, rising with uniform numbers in [0, 1) `[B]`."""
        return self._rising[(uniform * len(self)).long()]

    def below(self, timesteps: Tensor) -> Tensor:
        """The timesteps `[B]` that a solver comes to next; `END` after the last."""
        index = torch.searchsorted(self._rising, timesteps.contiguous())
        return torch.where(index > 0, self._rising[(index - 1).clamp(min=0)], END)
