"""Teachers that were trained on whole timesteps of a variance-preserving diffusion: epsilon- or v-prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.family import Family


class Diffusion(Family):
    """What all families with a noise schedule of diffusers have in common; the rest is the denoiser's own."""

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler

        super().__init__(pipeline, resolution=resolution)
        given = pipeline.scheduler
        if not hasattr(given, "alphas_cumprod") or given.config.get("timestep_type") == "continuous":
            raise CondistillError(
                f"the teacher's scheduler is {type(given).__name__}, whose noise is no schedule of betas over whole "
                f"timesteps; {self.name} knows those of DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler and such"
            )
        if isinstance(pipeline.scheduler, LCMScheduler):
            raise CondistillError(
                "the teacher's scheduler is LCMScheduler: a consistency model says where a path ends, not how it goes "
                "on, so it cannot teach; give the pipeline that it was made of"
            )
        self._noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._solver = DDIMScheduler.from_config(
            pipeline.scheduler.config,
            timestep_spacing="trailing",
            clip_sample=False,
            thresholding=False,
            **({"set_alpha_to_one": True} if _ends_clean(pipeline.scheduler) else {}),
        )
        self._consistency = LCMScheduler.from_config(
            pipeline.scheduler.config, timestep_scaling=10.0, clip_sample=False, thresholding=False
        )
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise CondistillError(
                f"the teacher's scheduler says prediction_type {self.prediction_type!r}; "
                f"{self.name} knows 'epsilon' and 'v_prediction'"
            )

    @property
    def total_timesteps(self) -> int:
        return int(self._noise.config.num_train_timesteps)

    def timesteps(self, uniform: Tensor) -> Tensor:
        return (uniform * self.total_timesteps).long()

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        x_t: Tensor = self._noise.add_noise(x_0, noise, timesteps)
        return x_t

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        velocity: Tensor = self._noise.get_velocity(x_0, noise, timesteps)
        return velocity

    def noise_level(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / self.total_timesteps

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        alphas_cumprod: Tensor = self._noise.alphas_cumprod.to(timesteps.device)
        return alphas_cumprod[timesteps]

    @property
    def solver(self) -> Any:
        return self._solver

    def solver_timesteps(self, num_inference_steps: int) -> Tensor:
        solver = type(self.solver).from_config(self.solver.config)
        solver.set_timesteps(num_inference_steps)
        timesteps: Tensor = solver.timesteps.long()
        return timesteps[timesteps >= 0]  # for some n, rounding leaves the scheduler one too many, at -1

    def check_few_steps(self, few_steps: Any) -> None:
        total = self.total_timesteps
        if few_steps.method == "consistency":
            if total % few_steps.solver_steps or 2 * few_steps.solver_steps > total:  # at 0 there is nothing to learn
                cuts = [n for n in range(few_steps.num_inference_steps, total // 2 + 1) if total % n == 0]
                raise CondistillError(
                    f"few_steps.solver_steps is {few_steps.solver_steps}; for {few_steps.num_inference_steps} steps or "
                    f"more, {total} timesteps can be cut evenly into {', '.join(map(str, cuts))}"
                )
        elif total % few_steps.num_inference_steps or few_steps.num_inference_steps * few_steps.teacher_steps > total:
            cuts = [n for n in range(1, total // few_steps.teacher_steps + 1) if total % n == 0]
            raise CondistillError(
                f"few_steps.num_inference_steps is {few_steps.num_inference_steps}; {total} timesteps can be cut "
                f"evenly into {', '.join(map(str, cuts))}"
            )

    def between(self, timesteps: Tensor, end: Tensor, part: int, parts: int) -> Tensor:
        return (timesteps + (end - timesteps) * part // parts).clamp(min=0)

    def step_coefficients(self, timesteps: Tensor, next_timesteps: Tensor) -> tuple[Tensor, Tensor]:
        # DDIM (Song et al., ICLR 2021, arXiv 2010.02502), eq. 12 with sigma = 0, solved for x_t and the prediction
        a = self.alpha_bar(timesteps)
        last = self._solver.final_alpha_cumprod.to(a)
        a_next = torch.where(next_timesteps < 0, last, self.alpha_bar(next_timesteps.clamp(min=0)))
        if self.prediction_type == "epsilon":
            of_x = (a_next / a).sqrt()
            return of_x, (1 - a_next).sqrt() - of_x * (1 - a).sqrt()
        of_x = (a_next * a).sqrt() + ((1 - a_next) * (1 - a)).sqrt()
        return of_x, ((1 - a_next) * a).sqrt() - (a_next * (1 - a)).sqrt()

    def consistency_solver(self, solver_steps: int) -> Any:
        return type(self._consistency).from_config(self._consistency.config, original_inference_steps=solver_steps)

    def consistency_coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        # f = c_skip x_t + c_out x_0 (Luo et al., arXiv 2310.04378, eq. 9), with x_0 from x_t and the prediction
        c_skip, c_out = self._consistency.get_scalings_for_boundary_condition_discrete(timesteps)
        a = self.alpha_bar(timesteps)
        if self.prediction_type == "epsilon":
            return c_skip + c_out / a.sqrt(), -c_out * ((1 - a) / a).sqrt()
        return c_skip + c_out * a.sqrt(), -c_out * (1 - a).sqrt()

    @property
    def prediction_type(self) -> str:
        return str(self._noise.config.prediction_type)


def _ends_clean(scheduler: Any) -> bool:
    """Whether a scheduler's last step ends at noise level 0; its config may say otherwise to others than itself."""
    return hasattr(scheduler, "sigmas") and scheduler.config.get("final_sigmas_type", "zero") == "zero"
