"""FLUX.1: a transformer over packed latents, trained by flow matching; dev is told its guidance scale, schnell none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.noise.flow import FlowSchedule
from condistill.teachers.noise.schedule import NoiseSchedule

T5_TOKENS = 512
"""What the pipeline's own call asks of T5."""
DEFAULT_GUIDANCE = 3.5
"""What a denoiser that must be told a guidance scale is told where nobody says one: the pipeline's own default."""


class Flux(Family):
    """A `FluxPipeline`. Latents are unpacked, `[B, 16, h, w]`, wherever the pipeline or its denoiser does not see them.

    Packed, each patch of 2x2 is a token: `[B, h w / 4, 64]`.
    """

    name = "flux"
    pipeline_classes = ("FluxPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "FluxTransformer2DModel"

    def build_noise(self) -> NoiseSchedule:
        return FlowSchedule(
            self.pipeline.scheduler, family=self.name, image_tokens=self.image_tokens, sigmas=_sigmas_of_call
        )

    @property
    def latent_channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    @property
    def own_latent_size(self) -> tuple[int, int]:
        size = int(self.pipeline.default_sample_size)
        return size, size

    @property
    def latent_multiple(self) -> int:
        return 2

    @property
    def text_length(self) -> int:
        return T5_TOKENS

    @classmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        config, tokens = denoiser.config, (size[0] // 2) * (size[1] // 2)
        inputs = {
            "hidden_states": torch.empty(1, tokens, config.in_channels, device="meta"),
            "timestep": torch.empty(1, device="meta"),
            "encoder_hidden_states": torch.empty(1, text_length, config.joint_attention_dim, device="meta"),
            "pooled_projections": torch.empty(1, config.pooled_projection_dim, device="meta"),
            "img_ids": torch.empty(tokens, 3, device="meta"),
            "txt_ids": torch.empty(text_length, 3, device="meta"),
        }
        return inputs | ({"guidance": torch.empty(1, device="meta")} if config.guidance_embeds else {})

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, max_sequence_length=T5_TOKENS
        )
        return Condition({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def predict(self, denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype, device = self._dtype(denoiser), x_t.device
        height, width = x_t.shape[2:]
        prompt_embeds = condition.tensors["prompt_embeds"].to(dtype)
        inputs = {}
        if cast("Any", denoiser.config).guidance_embeds:
            scale = condition.tensors.get("guidance_scale", torch.full((len(x_t),), DEFAULT_GUIDANCE))
            inputs["guidance"] = scale.to(device, torch.float32)
        packed = denoiser(
            self._pack(x_t.to(dtype)),
            # rounded before it is divided, as the pipeline's own call has it
            timestep=timesteps.to(dtype) / 1000,
            encoder_hidden_states=prompt_embeds,
            pooled_projections=condition.tensors["pooled_prompt_embeds"].to(dtype),
            img_ids=self.pipeline._prepare_latent_image_ids(len(x_t), height // 2, width // 2, device, dtype),
            txt_ids=torch.zeros(prompt_embeds.shape[1], 3, device=device, dtype=dtype),
            **inputs,
        ).sample
        prediction: Tensor = self.pipeline._unpack_latents(packed, height, width, vae_scale_factor=1).float()
        return prediction

    def _pack(self, latents: Tensor) -> Tensor:
        packed: Tensor = self.pipeline._pack_latents(latents, *latents.shape)
        return packed

    def _unpack(self, latents: Tensor) -> Tensor:
        unpacked: Tensor = self.pipeline._unpack_latents(latents, *self.latent_shape[1:], vae_scale_factor=1)
        return unpacked


def _sigmas_of_call(num_inference_steps: int) -> NDArray[np.float64]:
    """Return the sigmas that `FluxPipeline.__call__` gives its scheduler."""
    return np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
