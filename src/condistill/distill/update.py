"""One update of the trained parameters: clipped gradients, AdamW, and the average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from condistill.config.distill import OptimizerSettings
from condistill.distill.student import StudentForward


def build_optimizer(trained: StudentForward, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Return the optimiser of all trained parameters."""
    parameters = list(trained.parameters())
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def build_average(trained: StudentForward, settings: OptimizerSettings) -> EMAModel | None:
    """Return the moving average of the denoiser's weights, or None if `ema_decay` is 0."""
    if not settings.ema_decay:
        return None
    return EMAModel(trained.denoiser.parameters(), decay=settings.ema_decay, foreach=True)


@dataclass(frozen=True)
class Update:
    """Changes the trained parameters by their gradients, and releases the gradients."""

    trained: StudentForward
    optimizer: torch.optim.Optimizer
    """As the accelerator wrapped it, if there is one."""
    average: EMAModel | None
    clip: Callable[[], Tensor]
    """Clips the gradients, and returns the norm that they had."""

    def __call__(self) -> Tensor:
        """Clip the gradients, step, average, and return the norm of the gradients."""
        norm = self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            add_to_average(self.average, self.trained.denoiser)
        return norm


@torch.no_grad()
def add_to_average(average: EMAModel, denoiser: nn.Module) -> None:
    """Move the average towards the weights, as `EMAModel.step` does, in one pass and without a copy of all weights."""
    average.optimization_step += 1
    average.cur_decay_value = average.get_decay(average.optimization_step)
    torch._foreach_lerp_(average.shadow_params, [*denoiser.parameters()], 1 - average.cur_decay_value)
