"""The noise of a variance-preserving diffusion over whole timesteps, with epsilon- or v-prediction.

x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.noise.schedule import NoiseSchedule, check_no_consistency_model

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from condistill.config.distill import FewStepSettings


_LEAST_SIGNAL = 1e-12
"""Least alpha_bar from which x_0 is computed; linear schedules end at 5e-3, the cosine schedule at 2e-9."""


class DiffusionSchedule(NoiseSchedule):
    """The noise schedule of a diffusers scheduler with betas; its solver is DDIM."""

    def __init__(self, scheduler: SchedulerMixin, *, family: str) -> None:
        """Take the noise of a pipeline's scheduler.

        Args:
            family: name of the teacher's family, for messages.

        Raises:
            CondistillError: the scheduler has no betas over whole timesteps, belongs to a consistency model, or has an
                unknown prediction type.
        """
        from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler

        check_no_consistency_model(scheduler)
        if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("timestep_type") == "continuous":
            raise CondistillError(
                f"the teacher's scheduler is {type(scheduler).__name__}, which has no betas over whole timesteps; "
                f"family {family} needs a scheduler that has, such as DDPMScheduler, DDIMScheduler or "
                "EulerDiscreteScheduler"
            )
        self._training_scheduler = DDPMScheduler.from_config(scheduler.config)
        self._solver = DDIMScheduler.from_config(
            scheduler.config,
            timestep_spacing="trailing",
            clip_sample=False,
            thresholding=False,
            **({"set_alpha_to_one": True} if _ends_without_noise(scheduler) else {}),
        )
        self._consistency_solver = LCMScheduler.from_config(
            scheduler.config, timestep_scaling=10.0, clip_sample=False, thresholding=False
        )
        self.prediction_type = str(self._training_scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise CondistillError(
                f"the teacher's scheduler has prediction_type {self.prediction_type!r}; family {family} supports "
                "'epsilon' and 'v_prediction'"
            )
        self._check_signal(family)

    def _check_signal(self, family: str) -> None:
        """Check that noise levels rise from below 1, and that x_0 can be computed from every prediction."""
        remaining = self._training_scheduler.alphas_cumprod
        falls = bool((remaining.diff() <= 0).all()) and 0 <= float(remaining[-1]) < float(remaining[0]) <= 1
        if not falls:
            raise CondistillError(
                "the betas of the teacher's scheduler do not add noise from step to step; restore beta_start, "
                "beta_end, beta_schedule and trained_betas in scheduler/scheduler_config.json of the original pipeline"
            )
        if self.prediction_type == "epsilon" and float(remaining[-1]) < _LEAST_SIGNAL:
            raise CondistillError(
                "the teacher's scheduler leaves no signal at its last timestep (rescale_betas_zero_snr in "
                "scheduler/scheduler_config.json), and from a predicted noise (prediction_type 'epsilon') the image "
                f"cannot be computed there; family {family} needs prediction_type 'v_prediction' for such a schedule: "
                "set rescale_betas_zero_snr to false, or give a teacher that predicts the velocity"
            )

    @property
    def total_timesteps(self) -> int:
        return int(self._training_scheduler.config.num_train_timesteps)

    def timesteps(self, uniform: Tensor) -> Tensor:
        return (uniform * self.total_timesteps).long()

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        x_t: Tensor = self._training_scheduler.add_noise(x_0, noise, timesteps)
        return x_t

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        velocity: Tensor = self._training_scheduler.get_velocity(x_0, noise, timesteps)
        return velocity

    def noise_level(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / self.total_timesteps

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        alphas_cumprod: Tensor = self._training_scheduler.alphas_cumprod.to(timesteps.device)
        return alphas_cumprod[timesteps]

    @property
    def solver(self) -> SchedulerMixin:
        return self._solver

    def solver_timesteps(self, num_inference_steps: int) -> Tensor:
        solver = type(self.solver).from_config(self.solver.config)
        solver.set_timesteps(num_inference_steps)
        timesteps: Tensor = solver.timesteps.long()
        return timesteps[timesteps >= 0]  # for some n, rounding gives the scheduler one timestep too many, at -1

    def check_few_steps(self, few_steps: FewStepSettings) -> None:
        total = self.total_timesteps
        if few_steps.method == "consistency":
            # with as many solver steps as timesteps, the lowest would be 0, where the consistency function is x_t
            if total % few_steps.solver_steps or 2 * few_steps.solver_steps > total:
                counts = [n for n in range(few_steps.num_inference_steps, total // 2 + 1) if total % n == 0]
                raise CondistillError(
                    f"few_steps.solver_steps is {few_steps.solver_steps}; for {few_steps.num_inference_steps} steps or "
                    f"more, {total} timesteps can be divided evenly into {', '.join(map(str, counts))}"
                )
        elif total % few_steps.num_inference_steps or few_steps.num_inference_steps * few_steps.teacher_steps > total:
            counts = [n for n in range(1, total // few_steps.teacher_steps + 1) if total % n == 0]
            raise CondistillError(
                f"few_steps.num_inference_steps is {few_steps.num_inference_steps}; {total} timesteps can be divided "
                f"evenly into {', '.join(map(str, counts))}"
            )

    def between(self, timesteps: Tensor, end: Tensor, part: int, parts: int) -> Tensor:
        return (timesteps + (end - timesteps) * part // parts).clamp(min=0)

    def step_coefficients(self, timesteps: Tensor, next_timesteps: Tensor) -> tuple[Tensor, Tensor]:
        # DDIM (Song et al., ICLR 2021, arXiv 2010.02502), eq. 12 with sigma = 0, solved for x_t and the prediction
        a = self.alpha_bar(timesteps)
        last = float(self._solver.final_alpha_cumprod)  # a number: a copy would let the CPU wait for a GPU
        a_next = torch.where(next_timesteps < 0, last, self.alpha_bar(next_timesteps.clamp(min=0)))
        if self.prediction_type == "epsilon":
            of_x = (a_next / a).sqrt()
            return of_x, (1 - a_next).sqrt() - of_x * (1 - a).sqrt()
        of_x = (a_next * a).sqrt() + ((1 - a_next) * (1 - a)).sqrt()
        return of_x, ((1 - a_next) * a).sqrt() - (a_next * (1 - a)).sqrt()

    def consistency_solver(self, solver_steps: int) -> SchedulerMixin:
        kind = type(self._consistency_solver)
        return kind.from_config(self._consistency_solver.config, original_inference_steps=solver_steps)

    def consistency_coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        # f = c_skip x_t + c_out x_0 (Luo et al., arXiv 2310.04378, eq. 9), with x_0 from x_t and the prediction
        c_skip, c_out = self._consistency_solver.get_scalings_for_boundary_condition_discrete(timesteps)
        a = self.alpha_bar(timesteps)
        if self.prediction_type == "epsilon":
            return c_skip + c_out / a.sqrt(), -c_out * ((1 - a) / a).sqrt()
        return c_skip + c_out * a.sqrt(), -c_out * (1 - a).sqrt()


def _ends_without_noise(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler's last step ends at noise level 0, which only schedulers with sigmas decide themselves."""
    return hasattr(scheduler, "sigmas") and scheduler.config.get("final_sigmas_type", "zero") == "zero"
