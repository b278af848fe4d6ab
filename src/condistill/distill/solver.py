"""The timesteps a solver visits, from pure noise to the end."""

from __future__ import annotations

import torch
from torch import Tensor

from condistill.config.distill import DistillSettings
from condistill.errors import CondistillError
from condistill.teachers.family import Family

END = -1
"""The timestep of the finished latent: what follows a solver's last one."""


def check_steps(family: Family, settings: DistillSettings) -> None:
    """Whether the teacher has the timesteps that paths and few steps ask for, and can be followed along a path.

    Raises:
        CondistillError: says which numbers of steps it can be cut into.
    """
    total = family.total_timesteps
    path, few = settings.path, settings.few_steps
    if path and family.has_context:
        raise CondistillError(
            f"distill.path is not for a teacher of family {family.name}: the part of the image that is kept does not "
            "move along with a state; leave out distill.path"
        )
    if path and path.num_inference_steps > total:
        raise CondistillError(
            f"path.num_inference_steps is {path.num_inference_steps}; the teacher has {total} timesteps"
        )
    if few:
        family.check_few_steps(few)


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
