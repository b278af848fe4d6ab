"""The states that teacher and student are compared at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condistill.distill.batches import Batch, Blend
from condistill.distill.prompt_choice import effective_noise_level
from condistill.distill.random_conditioning import RandomConditioning
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import SolverGrid


@dataclass(frozen=True)
class Sample:
    """B states, each with a prompt, and what is known of the truth. Timesteps stay on the CPU."""

    x_t: Tensor
    """`[B, C, h, w]`."""
    timesteps: Tensor
    """As the denoiser takes them, `[B]`."""
    prompts: list[str]
    replaced: Tensor
    """Whether there is no true target: the prompt is not the latent's own, or the state has moved. Bool `[B]`."""
    x_0: Tensor
    noise: Tensor
    """x_t is these two at its timestep, wherever there is a true target."""
    guidance_scale: Tensor | None = None
    """What the student is told, where it is told one: float64 `[B]`, on the CPU."""
    blend: Blend | None = None
    """What the prompts are blended with; None: nothing."""
    context: Tensor | None = None
    """Random numbers `[B]` for `Family.training_condition`; None: the condition is the prompt alone."""

    @property
    def replaced_prompt(self) -> Tensor:
        """Of isolated samples, those with a random prompt: bool `[B]`."""
        return self.replaced & torch.tensor([bool(prompt) for prompt in self.prompts])


def noised_latents(
    family: Family,
    conditioning: RandomConditioning,
    batch: Batch,
    *,
    timestep_bias: float = 0.0,
    grid: SolverGrid | None = None,
) -> Sample:
    """The paper's samples: cached latents, noised, each with its own or with a random prompt.

    Args:
        timestep_bias: b of the density u^b over the noise level u.
        grid: the only timesteps there are, where the student takes few steps.
    """
    draws = batch.draws
    x_0, noise = batch.x_0.to(family.device), draws.noise.to(family.device)
    # a power of a uniform number has the density u^bias over the noise level u
    uniform = draws.uniform ** (1 / (1 + timestep_bias))
    timesteps = grid.draw(uniform) if grid else family.noise.timesteps(uniform)
    level = family.noise.noise_level(timesteps)
    if batch.stretch is not None:
        level = effective_noise_level(level, batch.stretch)
    prompts, replaced = conditioning(batch.own, batch.random, level, coin=draws.coin, empty_coin=draws.empty_coin)
    x_t = family.noise.add_noise(x_0, noise, timesteps.to(family.device))
    context = draws.path_coin if family.has_image_condition else None  # where there is a context, there are no paths
    sample = Sample(x_t, timesteps, prompts, replaced, x_0, noise, batch.guidance_scale, context=context)
    return replace(sample, blend=batch.blend.where(sample.replaced_prompt)) if batch.blend else sample


def pure_noise(family: Family, conditioning: RandomConditioning, batch: Batch, first_timestep: Tensor) -> Sample:
    """Where sampling begins: noise and a prompt of the pool, or the empty one as often as anywhere."""
    draws = batch.draws
    noise = draws.noise.to(family.device)
    level = torch.ones(len(noise))
    prompts, _ = conditioning(batch.random, batch.random, level, coin=draws.coin, empty_coin=draws.empty_coin)
    timesteps = first_timestep.repeat(len(noise))
    return Sample(noise, timesteps, prompts, level.bool(), torch.zeros_like(noise), noise, batch.guidance_scale)
