"""Teachers that were trained by flow matching: x_t = (1 - sigma) x_0 + sigma noise, and the prediction is noise - x_0.

Timesteps are float32, T sigma. The noise level u that p(u) sees is sigma itself, so that its schedules keep their
meaning; where sampling is shifted to noisier states (Esser et al., arXiv 2403.03206, eq. 23), training is as well.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.family import Family


class FlowMatching(Family):
    """What all families of flow matching have in common; the rest is the denoiser's own."""

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

        super().__init__(pipeline, resolution=resolution)
        scheduler, config = pipeline.scheduler, pipeline.scheduler.config
        flows = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
        if not isinstance(scheduler, flows) and not config.get("use_flow_sigmas"):
            raise CondistillError(
                f"the teacher's scheduler, a {type(scheduler).__name__}, is not set to a flow; {self.name} needs "
                f"{' or '.join(kind.__name__ for kind in flows)}, or use_flow_sigmas: true in its scheduler_config.json"
            )
        # not from_config, which would keep the settings that other schedulers have beside: pipelines read some of them
        known = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
        settings = {name: value for name, value in config.items() if name in known}
        shift = config.shift if isinstance(scheduler, flows) else config.flow_shift  # either may be told beside
        settings |= {"stochastic_sampling": False, "shift": shift}
        self._solver = FlowMatchEulerDiscreteScheduler(**settings)

    @property
    def _mu(self) -> float | None:
        """How far the pipeline's call shifts images of this size; None where the scheduler's config says it for all."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self._solver.config
        if not config.use_dynamic_shifting:
            return None
        height, width = (size // self.latent_multiple for size in self.latent_shape[1:])  # a token each
        lengths = (config.base_image_seq_len, config.max_image_seq_len)
        return float(calculate_shift(height * width, *lengths, config.base_shift, config.max_shift))

    def _schedule(self, num_inference_steps: int) -> dict[str, Any]:
        """What the pipeline's call gives its scheduler to set its timesteps by."""
        return {"num_inference_steps": num_inference_steps, "mu": self._mu}

    def shifted(self, sigmas: Tensor) -> Tensor:
        """Noise levels above 0, equally spaced, as the pipeline's scheduler shifts them."""
        if self._mu is not None:
            dynamic: Tensor = self._solver.time_shift(self._mu, 1.0, sigmas)
            return dynamic
        shift = float(self._solver.config.shift)
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    @property
    def total_timesteps(self) -> int:
        return int(self._solver.config.num_train_timesteps)

    def timesteps(self, uniform: Tensor) -> Tensor:
        least = 1 / self.total_timesteps  # at sigma 0 nothing is left to learn
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
    def solver(self) -> Any:
        return self._solver

    def solver_timesteps(self, num_inference_steps: int) -> Tensor:
        solver = type(self.solver).from_config(self.solver.config)
        solver.set_timesteps(**self._schedule(num_inference_steps))
        timesteps: Tensor = solver.timesteps.float()
        return timesteps

    def check_few_steps(self, few_steps: Any) -> None:
        if few_steps.method == "consistency":
            raise CondistillError(
                f"few_steps.method 'consistency' needs a teacher with timesteps of a diffusion, and {self.name} is "
                "trained by flow matching; set few_steps.method: progressive"
            )

    def between(self, timesteps: Tensor, end: Tensor, part: int, parts: int) -> Tensor:
        return timesteps + (end.clamp(min=0) - timesteps) * (part / parts)

    def step_coefficients(self, timesteps: Tensor, next_timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma, next_sigma = self.noise_level(timesteps), self.noise_level(next_timesteps.clamp(min=0))
        return torch.ones_like(sigma), next_sigma - sigma

    def consistency_solver(self, solver_steps: int) -> Any:
        raise NotImplementedError  # `check_few_steps` has told

    def consistency_coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @property
    def prediction_type(self) -> str:
        return "flow"
