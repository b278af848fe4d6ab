"""FLUX.1: a transformer over packed latents, trained by flow matching.

The guidance scale is an input of FLUX.1-dev; FLUX.1-schnell has no guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condistill.teachers.condition import Condition
from condistill.teachers.exportable import TextInput
from condistill.teachers.family import Family, dtype_of
from condistill.teachers.noise.flow import FlowSchedule
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.teachers.traits import GuidanceSpec, LayerList

if TYPE_CHECKING:
    from diffusers import ModelMixin

T5_TOKENS = 512
"""Tokens of T5 in the pipeline's call by default."""


class Flux(Family):
    """A `FluxPipeline`.

    Latents are unpacked, `[B, 16, h, w]`, everywhere but in the pipeline's call and in its denoiser, where each 2x2
    patch is a token: `[B, h w / 4, 64]`.
    """

    name = "flux"
    pipeline_classes = ("FluxPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "FluxTransformer2DModel"
    packages = ("sentencepiece", "protobuf")
    layer_lists = (
        LayerList("transformer_blocks", "num_layers", joint_class="FluxTransformerBlock"),
        LayerList("single_transformer_blocks", "num_single_layers", joint_class="FluxSingleTransformerBlock"),
    )
    guidance = GuidanceSpec(config_key="guidance_embeds", otherwise="none", default_scale=3.5, scale_range=(1.5, 5.0))

    def build_noise(self) -> NoiseSchedule:
        return FlowSchedule(
            self.pipeline.scheduler, family=self.name, image_tokens=self.image_tokens, sigmas=_sigmas_of_call
        )

    @property
    def latent_channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    @property
    def default_latent_size(self) -> tuple[int, int]:
        size = int(self.pipeline.default_sample_size)
        return size, size

    @property
    def latent_multiple(self) -> int:
        return 2

    @property
    def text_length(self) -> int:
        return T5_TOKENS

    @property
    def prompt_reader(self) -> tuple[Any, int]:
        return self.pipeline.tokenizer_2, T5_TOKENS

    @classmethod
    def example_inputs(cls, denoiser: ModelMixin, size: tuple[int, int], text_length: int) -> dict[str, Any]:
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

    def text_inputs(self) -> tuple[TextInput, ...]:
        clip = TextInput("tokenizer", "input_ids", int(self.pipeline.tokenizer_max_length))
        return (clip, TextInput("tokenizer_2", "input_ids_2", T5_TOKENS))

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        pooled = self.pipeline.text_encoder(tokens["input_ids"]).pooler_output
        embeds = self.pipeline.text_encoder_2(tokens["input_ids_2"])[0]
        return Condition({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def predict(self, denoiser: ModelMixin, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype, device = dtype_of(denoiser), x_t.device
        height, width = x_t.shape[2:]
        prompt_embeds = condition.tensors["prompt_embeds"].to(dtype)
        inputs = {}
        if denoiser.config.guidance_embeds:
            guidance_scale = condition.tensors.get(
                "guidance_scale", torch.full((len(x_t),), self.guidance.default_scale)
            )
            inputs["guidance"] = guidance_scale.to(device, torch.float32)
        packed = denoiser(
            self.pack_latents(x_t.to(dtype)),
            timestep=timesteps.to(dtype) / 1000,  # the pipeline's call rounds before it divides too
            encoder_hidden_states=prompt_embeds,
            pooled_projections=condition.tensors["pooled_prompt_embeds"].to(dtype),
            img_ids=self.pipeline._prepare_latent_image_ids(len(x_t), height // 2, width // 2, device, dtype),
            txt_ids=torch.zeros(prompt_embeds.shape[1], 3, device=device, dtype=dtype),
            **inputs,
        ).sample
        return self._unpack(packed, height, width).float()

    def pack_latents(self, latents: Tensor) -> Tensor:
        packed: Tensor = self.pipeline._pack_latents(latents, *latents.shape)
        return packed

    def unpack_latents(self, latents: Tensor) -> Tensor:
        return self._unpack(latents, *self.latent_shape[1:])

    def _unpack(self, packed: Tensor, height: int, width: int) -> Tensor:
        unpacked: Tensor = self.pipeline._unpack_latents(packed, height, width, vae_scale_factor=1)
        return unpacked


def _sigmas_of_call(num_inference_steps: int) -> NDArray[np.float64]:
    """Return the sigmas that `FluxPipeline.__call__` gives its scheduler."""
    return np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
