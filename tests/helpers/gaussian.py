"""A teacher of Gaussian data: its denoiser, its solver's limit and its losses have closed forms.

Let the latents of a prompt be N(mu, Sigma), and x_t = alpha x_0 + sigma noise. With S = alpha^2 Sigma + sigma^2 I,
the ideal denoiser predicts

    E[noise | x_t] = sigma S^-1 (x_t - alpha mu),    E[x_0 | x_t] = mu + alpha Sigma S^-1 (x_t - alpha mu),

and from these v = alpha noise - sigma x_0, or the flow noise - x_0. Every marginal of the probability-flow ODE (Song et
al., ICLR 2021, arXiv 2011.13456) is N(alpha mu, S), and all S commute, so its solution from one time to another is

    x_s = alpha_s mu + S_s^1/2 S_t^-1/2 (x_t - alpha_t mu).

Predictions are affine in mu. So where all prompts share Sigma, guidance gives the ideal denoiser of the mean
mu_empty + scale (mu - mu_empty).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.flow import FlowSchedule
from condistill.teachers.noise.grid import END
from condistill.teachers.noise.schedule import NoiseSchedule

SHAPE = (2, 2, 2)
"""(C, h, w) of a latent."""
SIZE = 8
_generator = torch.Generator().manual_seed(0)
VARIANCES = torch.logspace(-1, 0.5, SIZE, dtype=torch.float64)
"""The eigenvalues of Sigma: from a fraction of the noise's variance to more than it."""
BASIS = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=_generator, dtype=torch.float64))[0]
"""The eigenvectors of Sigma, one per column."""
MEANS = {prompt: torch.randn(SIZE, generator=_generator, dtype=torch.float64) for prompt in ("", "a", "b", "c")}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "epsilon": lambda: DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    "v_prediction": lambda: DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}
"""diffusers schedulers by what their teacher predicts."""


class Level(NamedTuple):
    """x_t = alpha x_0 + sigma noise: float64 `[B, 1]`."""

    alpha: Tensor
    sigma: Tensor


def means_of(prompts: Sequence[str]) -> Tensor:
    """Return the mean of the latents of each prompt, float64 `[B, D]`."""
    return torch.stack([MEANS[prompt] for prompt in prompts])


def guided_means(prompts: Sequence[str], scale: float | Tensor) -> Tensor:
    """Return the means `[B, D]` whose ideal denoiser equals guidance at a scale, a number or `[B, 1]`."""
    return MEANS[""] + scale * (means_of(prompts) - MEANS[""])


def sample_latents(prompts: Sequence[str], generator: torch.Generator) -> Tensor:
    """Sample latents of each prompt, float64 `[B, C, h, w]`."""
    normal = torch.randn(len(prompts), SIZE, generator=generator, dtype=torch.float64)
    return (means_of(prompts) + (normal * VARIANCES.sqrt()) @ BASIS.T).view(-1, *SHAPE)


class GaussianDenoiser(nn.Module):
    """The ideal denoiser, in float64."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.scheduler, self.config = scheduler, scheduler.config
        self.kind = scheduler.config.get("prediction_type", "flow")
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # `Family` reads the device of a parameter

    def level(self, timesteps: Tensor) -> Level:
        """Return alpha and sigma at timesteps `[B]`, straight from the scheduler; `END` is its last level."""
        t = timesteps.double()[:, None]
        if self.kind == "flow":
            sigma = t.clamp(min=0) / self.config.num_train_timesteps
            return Level(1 - sigma, sigma)
        alpha_bar = self.scheduler.alphas_cumprod.double()[timesteps.long().clamp(min=0)][:, None]
        alpha_bar = torch.where(t == END, self.scheduler.final_alpha_cumprod.double(), alpha_bar)
        return Level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    def forward(self, x_t: Tensor, timesteps: Tensor, means: Tensor) -> Tensor:
        """Return the ideal prediction `[B, C, h, w]` for latents of the means `[B, D]`."""
        alpha, sigma = self.level(timesteps)
        centred = (x_t.flatten(1).double() - alpha * means) @ BASIS / variance_at(self.level(timesteps))
        noise = sigma * centred @ BASIS.T
        x_0 = means + alpha * (VARIANCES * centred) @ BASIS.T
        prediction = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: alpha * noise - sigma * x_0,
            "flow": lambda: noise - x_0,
        }[self.kind]()
        return prediction.view_as(x_t)

    def flow_map(self, x_t: Tensor, start: Tensor, end: Tensor, means: Tensor) -> Tensor:
        """Return the exact solution of the probability-flow ODE from timesteps `start` `[B]` to `end` `[B]`."""
        one, other = self.level(start), self.level(end)
        stretch = (variance_at(other) / variance_at(one)).sqrt()
        moved = (x_t.flatten(1) - one.alpha * means) @ BASIS * stretch @ BASIS.T
        return (other.alpha * means + moved).view_as(x_t)

    def residual_variance(self, timesteps: Tensor) -> Tensor:
        """Return the variance of the true target given x_t, the mean of its D elements: float64 `[B]`.

        Given x_t, the noise has the covariance alpha^2 Sigma S^-1; an error e of the noise is an error of e / alpha in
        v (where alpha^2 + sigma^2 = 1) and in the flow (where alpha + sigma = 1).
        """
        level = self.level(timesteps)
        of_noise = level.alpha.square() * VARIANCES / variance_at(level)
        return (of_noise if self.kind == "epsilon" else of_noise / level.alpha.square()).mean(1)


def variance_at(level: Level) -> Tensor:
    """Return the eigenvalues of S = alpha^2 Sigma + sigma^2 I, `[B, D]`."""
    return level.alpha.square() * VARIANCES + level.sigma.square()


class GaussianPipeline:
    """The components that `Family` needs of a diffusers pipeline."""

    vae_scale_factor = 1

    def __init__(self, kind: str) -> None:
        self.scheduler = SCHEDULERS[kind]()
        self.transformer = GaussianDenoiser(self.scheduler)
        self.components = {"transformer": self.transformer}

    def set_progress_bar_config(self, **_: Any) -> None:
        """Do nothing: there is no progress bar."""


class GaussianFamily(Family):
    """The family of `GaussianPipeline`; a test registers it."""

    name = "gaussian"
    pipeline_classes = ("GaussianPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "GaussianDenoiser"
    latent_shape = SHAPE
    text_length = 1

    def build_noise(self) -> NoiseSchedule:
        scheduler = self.pipeline.scheduler
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return FlowSchedule(scheduler, family=self.name, image_tokens=1)
        return DiffusionSchedule(scheduler, family=self.name)

    @classmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        raise NotImplementedError  # no test counts the operations of this denoiser

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition({"means": means_of(prompts)})

    def predict(self, denoiser: Any, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Return the prediction, in float64."""
        prediction: Tensor = denoiser(x_t, timesteps, condition.tensors["means"])
        return prediction
