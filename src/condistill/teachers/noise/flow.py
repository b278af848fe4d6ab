"""The noise of flow matching: x_t = (1 - sigma) x_0 + sigma noise, and the prediction is noise - x_0.

Timesteps are float32, T sigma. The noise level u, the argument of p(u), is sigma itself, so that schedules of p(u) keep
their meaning. Where sampling is shifted to noisier states (Esser et al., arXiv 2403.03206, eq. 23), so is training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.noise.schedule import NoiseSchedule, check_no_consistency_model

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from condistill.config.distill import FewStepSettings

Sigmas = Callable[[int], NDArray[np.float64]]
"""The sigmas of a number of solver steps, before any shift, in falling order."""


class FlowSchedule(NoiseSchedule):
    """The noise schedule of a flow-matching scheduler of diffusers; its solver is Euler's method."""

    prediction_type = "flow"

    def __init__(
        self, scheduler: SchedulerMixin, *, family: str, image_tokens: int, sigmas: Sigmas | None = None
    ) -> None:
        """Take the noise of a pipeline's scheduler.

        Args:
            family: name of the teacher's family, for messages.
            image_tokens: tokens of one image in the denoiser; a dynamic shift depends on their number.
            sigmas: how the pipeline's call sets its sigmas; None: it leaves them to the scheduler.

        Raises:
            CondistillError: the scheduler is not set to flow matching, or belongs to a consistency model.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

        check_no_consistency_model(scheduler)
        self.has_uniform_sigmas = sigmas is not None
        self._family, self._image_tokens, self._sigmas = family, image_tokens, sigmas
        config = scheduler.config
        flow_schedulers = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
        is_flow = isinstance(scheduler, flow_schedulers)
        if not is_flow and not config.get("use_flow_sigmas"):
            raise CondistillError(
                f"the teacher's scheduler, a {type(scheduler).__name__}, is not set to flow matching; family {family} "
                f"needs {' or '.join(kind.__name__ for kind in flow_schedulers)}, or use_flow_sigmas: true in its "
                "scheduler_config.json"
            )
        # not from_config: it would keep settings of other schedulers, and some pipelines read them
        known = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
        settings = {name: value for name, value in config.items() if name in known}
        shift = config.shift if is_flow else config.flow_shift  # a config may have both
        self._solver = FlowMatchEulerDiscreteScheduler(**settings | {"stochastic_sampling": False, "shift": shift})

    @property
    def _mu(self) -> float | None:
        """The dynamic shift for this number of image tokens; None where the scheduler's config fixes the shift."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self._solver.config
        if not config.use_dynamic_shifting:
            return None
        lengths = (config.base_image_seq_len, config.max_image_seq_len)
        return float(calculate_shift(self._image_tokens, *lengths, config.base_shift, config.max_shift))

    def shifted(self, sigmas: Tensor) -> Tensor:
        """Return sigmas above 0 as the pipeline's scheduler shifts them."""
        if self._mu is not None:
            dynamic: Tensor = self._solver.time_shift(self._mu, 1.0, sigmas)
            return dynamic
        shift = float(self._solver.config.shift)
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    @property
    def total_timesteps(self) -> int:
        return int(self._solver.config.num_train_timesteps)

    def timesteps(self, uniform: Tensor) -> Tensor:
        least = 1 / self.total_timesteps  # at sigma 0 there is nothing to learn
        return (self.shifted(least + (1 - least) * uniform.double()) * self.total_timesteps).float()

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return torch.lerp(x_0, noise, self.noise_level(timesteps).view(-1, 1, 1, 1).to(x_0))

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:  # noqa: ARG002 - the same at all of them
        return noise - x_0

    def noise_level(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / self.total_timesteps

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        sigma = self.noise_level(timesteps)
        signal = (1 - sigma).square()
        return signal / (signal + sigma.square())

    @property
    def solver(self) -> SchedulerMixin:
        return self._solver

    def solver_timesteps(self, num_inference_steps: int) -> Tensor:
        solver = type(self.solver).from_config(self.solver.config)
        if self._sigmas is None:
            solver.set_timesteps(num_inference_steps, mu=self._mu)
        else:
            solver.set_timesteps(sigmas=self._sigmas(num_inference_steps), mu=self._mu)
        timesteps: Tensor = solver.timesteps.float()
        return timesteps

    def check_few_steps(self, few_steps: FewStepSettings) -> None:
        if few_steps.method == "consistency":
            raise CondistillError(
                f"few_steps.method 'consistency' needs a teacher trained by diffusion, and {self._family} is trained "
                "by flow matching; set few_steps.method: progressive"
            )

    def between(self, timesteps: Tensor, end: Tensor, part: int, parts: int) -> Tensor:
        return timesteps + (end.clamp(min=0) - timesteps) * (part / parts)

    def step_coefficients(self, timesteps: Tensor, next_timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma, next_sigma = self.noise_level(timesteps), self.noise_level(next_timesteps.clamp(min=0))
        return torch.ones_like(sigma), next_sigma - sigma

    def consistency_solver(self, solver_steps: int) -> SchedulerMixin:
        raise NotImplementedError  # `check_few_steps` refuses consistency models

    def consistency_coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError  # `check_few_steps` refuses consistency models
