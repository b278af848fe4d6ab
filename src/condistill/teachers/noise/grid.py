"""The timesteps that a solver visits, from pure noise to the finished latent."""

from __future__ import annotations

import torch
from torch import Tensor

from condistill.teachers.noise.schedule import NoiseSchedule

END = -1
"""The timestep of the finished latent, which follows a solver's last timestep."""


class SolverGrid:
    """The timesteps of a solver with a given number of steps."""

    def __init__(self, noise: NoiseSchedule, num_inference_steps: int) -> None:
        self._rising = noise.solver_timesteps(num_inference_steps).flip(0)

    def __len__(self) -> int:
        return len(self._rising)

    @property
    def first(self) -> Tensor:
        """The timestep at which sampling begins, a tensor without dimensions."""
        return self._rising[-1]

    def draw(self, uniform: Tensor) -> Tensor:
        """Return timesteps `[B]` of the grid for uniform numbers in [0, 1) `[B]`: equally likely, and rising."""
        return self._rising[(uniform * len(self)).long()]

    def below(self, timesteps: Tensor) -> Tensor:
        """Return the timesteps `[B]` that the solver visits next; `END` after the last."""
        index = torch.searchsorted(self._rising, timesteps.contiguous())
        return torch.where(index > 0, self._rising[(index - 1).clamp(min=0)], END)
