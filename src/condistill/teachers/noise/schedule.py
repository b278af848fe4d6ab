"""The noise of a teacher: how latents are noised in training, and how a solver removes the noise step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from condistill.errors import CondistillError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from condistill.config.distill import FewStepSettings

CONSISTENCY_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "SCMScheduler")
"""Schedulers of diffusers for models that predict only the ends of paths."""


def is_of_consistency_model(scheduler: SchedulerMixin) -> bool:
    """Return whether a scheduler samples from consistency models or their kin."""
    return type(scheduler).__name__ in CONSISTENCY_SCHEDULERS


def check_no_consistency_model(scheduler: SchedulerMixin) -> None:
    """Check that a scheduler is not that of a consistency model, which can be sampled but cannot teach.

    Raises:
        CondistillError: it is.
    """
    if is_of_consistency_model(scheduler):
        raise CondistillError(
            f"the teacher's scheduler is {type(scheduler).__name__}: a consistency model predicts only the end of a "
            "path, so it cannot teach the steps between; give the pipeline that it was distilled from, or, if the "
            "weights are those of that pipeline, its scheduler as teacher.scheduler"
        )


class NoiseSchedule(ABC):
    """The noise schedule of a teacher, with a deterministic solver of first order.

    Shapes: latents `[B, C, h, w]`, timesteps `[B]` as the denoiser takes them. Where a method takes a next timestep,
    -1 stands for the finished latent.
    """

    prediction_type: str
    """What the denoiser predicts: `epsilon` or `v_prediction`, as diffusers spells them, or `flow`."""
    has_uniform_sigmas: bool = False
    """Whether n steps begin at noise levels 1, ..., 2/n, 1/n before any shift; only flow matching can have them."""

    @property
    @abstractmethod
    def total_timesteps(self) -> int:
        """T: the timestep of pure noise, or one more than it."""

    @abstractmethod
    def timesteps(self, uniform: Tensor) -> Tensor:
        """Return training timesteps `[B]` for uniform numbers in [0, 1) `[B]`.

        Returns:
            int64 for diffusion, float32 for flow matching.
        """

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t `[B, C, h, w]`."""

    @abstractmethod
    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the prediction of an ideal denoiser `[B, C, h, w]`: epsilon, v or flow velocity."""

    @abstractmethod
    def noise_level(self, timesteps: Tensor) -> Tensor:
        """Return the noise level u in [0, 1] `[B]`, the argument of p(u); 1 is pure noise."""

    @abstractmethod
    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        """Return the share of signal variance in x_t `[B]`: SNR = alpha_bar / (1 - alpha_bar)."""

    @property
    @abstractmethod
    def solver(self) -> SchedulerMixin:
        """The diffusers scheduler that takes the steps of `step`: deterministic and of first order."""

    @abstractmethod
    def solver_timesteps(self, num_inference_steps: int) -> Tensor:
        """Return the timesteps that the solver visits, in falling order, `[n]`; the first is pure noise."""

    @abstractmethod
    def check_few_steps(self, few_steps: FewStepSettings) -> None:
        """Check that a student can learn `distill.few_steps` from this teacher.

        Raises:
            CondistillError: it cannot; the message names valid settings.
        """

    @abstractmethod
    def between(self, timesteps: Tensor, end: Tensor, part: int, parts: int) -> Tensor:
        """Return the timesteps at `part` / `parts` of the way from `timesteps` `[B]` down to `end` `[B]`."""

    @abstractmethod
    def step_coefficients(self, timesteps: Tensor, next_timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors `[B]` of x_t and of the prediction in a solver step."""

    def step(self, prediction: Tensor, x_t: Tensor, timesteps: Tensor, next_timesteps: Tensor) -> Tensor:
        """Return the latents at `next_timesteps` `[B]` after one solver step from x_t."""
        of_x, of_prediction = self.step_coefficients(timesteps, next_timesteps)
        return _per_sample(of_x) * x_t + _per_sample(of_prediction) * prediction

    def implied_prediction(self, x_next: Tensor, x_t: Tensor, timesteps: Tensor, next_timesteps: Tensor) -> Tensor:
        """Return the prediction with which one solver step from x_t gives `x_next`: the inverse of `step`."""
        of_x, of_prediction = self.step_coefficients(timesteps, next_timesteps)
        return (x_next - _per_sample(of_x) * x_t) / _per_sample(of_prediction)

    @abstractmethod
    def consistency_solver(self, solver_steps: int) -> SchedulerMixin:
        """Return the diffusers scheduler that samples from consistency models trained at `solver_steps` timesteps."""

    @abstractmethod
    def consistency_coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors `[B]` of x_t and of the prediction in the consistency function: 1 and 0 at timestep 0."""

    def path_end(self, prediction: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Return the consistency function of a prediction at x_t: an estimate of the end of the path through x_t."""
        of_x, of_prediction = self.consistency_coefficients(timesteps)
        return _per_sample(of_x) * x_t + _per_sample(of_prediction) * prediction

    def consistent_prediction(self, end: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Return the prediction at x_t whose consistency function is `end`, for timesteps above 0."""
        of_x, of_prediction = self.consistency_coefficients(timesteps)
        return (end - _per_sample(of_x) * x_t) / _per_sample(of_prediction)


def _per_sample(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)
