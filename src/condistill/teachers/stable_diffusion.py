"""Stable Diffusion 1.x and 2.x: a U-Net with cross-attention, epsilon- or v-prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.family import Condition, Family


class StableDiffusion(Family):
    """A `StableDiffusionPipeline`."""

    name = "stable_diffusion"
    pipeline_classes = ("StableDiffusionPipeline",)
    denoiser_name = "unet"

    def __init__(self, pipeline: Any) -> None:
        from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler

        super().__init__(pipeline)
        if isinstance(pipeline.scheduler, LCMScheduler):
            raise CondistillError(
                "the teacher's scheduler is LCMScheduler: a consistency model says where a path ends, not how it goes "
                "on, so it cannot teach; give the pipeline that it was made of"
            )
        self._noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._solver = DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False, thresholding=False
        )
        self._consistency = LCMScheduler.from_config(
            pipeline.scheduler.config, timestep_scaling=10.0, clip_sample=False, thresholding=False
        )
        self._total_timesteps: int = self._noise.config.num_train_timesteps
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise CondistillError(
                f"the teacher's scheduler says prediction_type {self.prediction_type!r}; "
                "stable_diffusion knows 'epsilon' and 'v_prediction'"
            )
        if self.denoiser.config.in_channels != pipeline.vae.config.latent_channels:
            raise CondistillError(
                f"the teacher's U-Net takes {self.denoiser.config.in_channels} channels and its autoencoder makes "
                f"{pipeline.vae.config.latent_channels}: an in-painting or image-conditioned model, "
                "which is not supported yet"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config = self.denoiser.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return int(config.in_channels), height, width

    @property
    def text_length(self) -> int:
        return int(self.pipeline.tokenizer.model_max_length)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return Condition({"prompt_embeds": embeds})

    @torch.no_grad()
    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        # less the empty prompt's: most of a mean over tokens, padding included, is common to all prompts
        means = self.encode([*prompts, ""]).tensors["prompt_embeds"].float().mean(1)
        said = torch.tensor([bool(prompt) for prompt in prompts], device=means.device)  # rounding says a little too
        return nn.functional.normalize((means[:-1] - means[-1]) * said[:, None])

    def predict(self, denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype, config = self._dtype(denoiser), cast("Any", denoiser.config)
        inputs = {"encoder_hidden_states": condition.tensors["prompt_embeds"].to(dtype)}
        scale = condition.tensors.get("guidance_scale")
        if scale is not None and config.time_cond_proj_dim is not None:
            # to the last bit what the pipeline's own call tells its denoiser
            embedding = self.pipeline.get_guidance_scale_embedding(
                (scale.cpu() - 1).float(), embedding_dim=config.time_cond_proj_dim
            )
            inputs["timestep_cond"] = embedding.to(x_t.device, dtype)
        prediction: Tensor = denoiser(x_t.to(dtype), timesteps, **inputs).sample.float()
        return prediction

    def timesteps(self, uniform: Tensor) -> Tensor:
        return (uniform * self._total_timesteps).long()

    def add_noise(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        x_t: Tensor = self._noise.add_noise(x_0, noise, timesteps)
        return x_t

    def target(self, x_0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        velocity: Tensor = self._noise.get_velocity(x_0, noise, timesteps)
        return velocity

    def noise_level(self, timesteps: Tensor) -> Tensor:
        return timesteps.float() / self._total_timesteps

    def alpha_bar(self, timesteps: Tensor) -> Tensor:
        alphas_cumprod: Tensor = self._noise.alphas_cumprod.to(timesteps.device)
        return alphas_cumprod[timesteps]

    @property
    def solver(self) -> Any:
        return self._solver

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

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        vae = self.pipeline.vae
        scaled = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        images = vae.decode(scaled).sample.float().clamp(-1, 1)
        pixels: NDArray[np.uint8] = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return pixels
