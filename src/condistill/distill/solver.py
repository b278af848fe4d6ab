"""The timesteps a solver visits, from pure noise to the end."""

from __future__ import annotations

import torch
from torch import Tensor

from condistill.distill.settings import ConsistencySettings, DistillSettings
from condistill.errors import CondistillError
from condistill.teachers.family import Family

END = -1
"""The timestep of the finished latent: what follows a solver's last one."""


def check_steps(family: Family, settings: DistillSettings) -> None:
    """Whether the teacher has the timesteps that paths and few steps ask for.

    Raises:
        CondistillError: says which numbers of steps it can be cut into.
    """
    total = int(family.solver.config.num_train_timesteps)
    path, few = settings.path, settings.few_steps
    if path and path.num_inference_steps > total:
        raise CondistillError(
            f"path.num_inference_steps is {path.num_inference_steps}; the teacher has {total} timesteps"
        )
    if isinstance(few, ConsistencySettings):
        if total % few.solver_steps or 2 * few.solver_steps > total:  # at timestep 0 there is nothing to learn
            cuts = [n for n in range(few.num_inference_steps, total // 2 + 1) if total % n == 0]
            raise CondistillError(
                f"few_steps.solver_steps is {few.solver_steps}; for {few.num_inference_steps} steps or more, {total} "
                f"timesteps can be cut evenly into {', '.join(map(str, cuts))}"
            )
    elif few and (total % few.num_inference_steps or few.num_inference_steps * few.teacher_steps > total):
        cuts = [n for n in range(1, total // few.teacher_steps + 1) if total % n == 0]
        raise CondistillError(
            f"few_steps.num_inference_steps is {few.num_inference_steps}; {total} timesteps can be cut evenly into "
            f"{', '.join(map(str, cuts))}"
        )


class SolverGrid:
    """The timesteps of so many solver steps."""

    def __init__(self, family: Family, num_inference_steps: int) -> None:
        self._rising = family.solver_timesteps(num_inference_steps).flip(0)

    def __len__(self) -> int:
        return len(self._rising)

    @property
    def first(self) -> int:
        """Where sampling begins."""
        return int(self._rising[-1])

    def draw(self, uniform: Tensor) -> Tensor:
        """Timesteps `[B]` of the grid, all equally likely, rising with uniform numbers in [0, 1) `[B]`."""
        return self._rising[(uniform * len(self)).long()]

    def below(self, timesteps: Tensor) -> Tensor:
        """The timesteps `[B]` that a solver comes to next; `END` after the last."""
        index = torch.searchsorted(self._rising, timesteps.contiguous())
        return torch.where(index > 0, self._rising[(index - 1).clamp(min=0)], END)
