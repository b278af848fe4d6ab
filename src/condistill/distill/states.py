"""The states (x_t, t, prompt) at which teacher and student are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condistill.distill.batches import Batch, Blend
from condistill.distill.random_conditioning import RandomConditioning, effective_noise_level
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import SolverGrid
from condistill.utils.transfer import on_device


@dataclass(frozen=True)
class Visit:
    """The place of B states in the buffer of `paths.Paths`, and how they move on; tensors are on the CPU."""

    block: int
    rows: slice
    on_path: Tensor
    """Which states move on, bool `[B]`."""
    by_student: Tensor
    """Which of them follow the student's prediction; the others follow the teacher's. Bool `[B]`."""


@dataclass(frozen=True)
class Sample:
    """B states, each with a prompt and with its true target where it has one. Timesteps stay on the CPU."""

    x_t: Tensor
    """`[B, C, h, w]`."""
    timesteps: Tensor
    """As the denoiser takes them, `[B]`."""
    prompts: list[str]
    replaced: Tensor
    """Which states have no true target, because the prompt is not the latent's or the state has moved. Bool `[B]`."""
    x_0: Tensor
    noise: Tensor
    """With x_0, gives x_t at its timestep for all states that have a true target."""
    guidance_scale: Tensor | None = None
    """Input of the student, float64 `[B]` on the CPU; None if it takes no guidance scale."""
    blend: Blend | None = None
    """Prompts that the prompts are blended with; None: no prompt is blended."""
    image_uniform: Tensor | None = None
    """Random numbers `[B]` for `Family.training_condition`; None: the condition is the prompt alone."""
    visit: Visit | None = None
    """None if no state is on a path."""

    @property
    def has_random_prompt(self) -> Tensor:
        """Which states are isolated and have a random prompt that is not blended: bool `[B]`."""
        random = self.replaced & torch.tensor([bool(prompt) for prompt in self.prompts])
        if self.blend:
            random = random & (self.blend.weight == 0)
        return random & ~self.visit.on_path if self.visit else random


def noised_latents(
    family: Family,
    conditioning: RandomConditioning,
    batch: Batch,
    *,
    timestep_bias: float = 0.0,
    grid: SolverGrid | None = None,
) -> Sample:
    """Return the paper's states: noised cached latents, each with its cached prompt or a random one.

    Args:
        timestep_bias: b of the density u^b over the noise level u.
        grid: the timesteps of a few-step student; None: all timesteps.
    """
    draws = batch.draws
    x_0, noise = on_device(batch.x_0, family.device), on_device(draws.noise, family.device)
    # a power of a uniform number has the density u^bias over the noise level u
    uniform = draws.uniform ** (1 / (1 + timestep_bias))
    timesteps = grid.draw(uniform) if grid else family.noise.timesteps(uniform)
    noise_level = family.noise.noise_level(timesteps)
    if batch.stretch is not None:
        noise_level = effective_noise_level(noise_level, batch.stretch)
    prompts, replaced = conditioning(
        batch.cached_prompts, batch.random_prompts, noise_level, coin=draws.coin, empty_coin=draws.empty_coin
    )
    sample = Sample(
        x_t=family.noise.add_noise(x_0, noise, on_device(timesteps, family.device)),
        timesteps=timesteps,
        prompts=prompts,
        replaced=replaced,
        x_0=x_0,
        noise=noise,
        guidance_scale=batch.guidance_scale,
        # a family with image conditions has no paths, which are the other use of these numbers
        image_uniform=draws.path_coin if family.has_image_condition else None,
    )
    return replace(sample, blend=batch.blend.where(sample.has_random_prompt)) if batch.blend else sample


def pure_noise(family: Family, conditioning: RandomConditioning, batch: Batch, first_timestep: Tensor) -> Sample:
    """Return the states at which sampling starts: noise, with a random prompt or, as in any sample, the empty one."""
    draws = batch.draws
    noise = on_device(draws.noise, family.device)
    noise_level = torch.ones(len(noise))
    prompts, _ = conditioning(
        batch.random_prompts, batch.random_prompts, noise_level, coin=draws.coin, empty_coin=draws.empty_coin
    )
    return Sample(
        x_t=noise,
        timesteps=first_timestep.repeat(len(noise)),
        prompts=prompts,
        replaced=noise_level.bool(),
        x_0=torch.zeros_like(noise),
        noise=noise,
        guidance_scale=batch.guidance_scale,
    )
