"""Stable Diffusion 1.x and 2.x: a U-Net with cross-attention, epsilon- or v-prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.schedule import NoiseSchedule

SIZES = 6
"""Numbers that Stable Diffusion XL is told of an image: its own size, where it was cropped and the size asked for."""


class StableDiffusion(Family):
    """A `StableDiffusionPipeline`."""

    name = "stable_diffusion"
    pipeline_classes = ("StableDiffusionPipeline",)
    denoiser_name = "unet"
    denoiser_class = "UNet2DConditionModel"

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        channels = int(self.denoiser.config.in_channels)
        if channels != self._input_channels:
            raise CondistillError(
                f"the teacher's U-Net takes {channels} channels and its autoencoder makes {self.latent_channels}; "
                f"family {self.name} takes {self._input_channels}. A U-Net of in-painting (9) belongs in a "
                "StableDiffusionInpaintPipeline, one of text alone (4) in a StableDiffusionPipeline"
            )

    def build_noise(self) -> NoiseSchedule:
        return DiffusionSchedule(self.pipeline.scheduler, family=self.name)

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.vae.config.latent_channels)

    @property
    def _input_channels(self) -> int:
        """Channels of what `_seen` makes."""
        return self.latent_channels

    @property
    def text_length(self) -> int:
        return int(self.pipeline.tokenizer.model_max_length)

    @classmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        return unet_inputs(denoiser.config, size, text_length)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return Condition({"prompt_embeds": embeds})

    def predict(self, denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype, config = self._dtype(denoiser), cast("Any", denoiser.config)
        inputs = {"encoder_hidden_states": condition.tensors["prompt_embeds"].to(dtype)}
        inputs |= self._told(condition, dtype)
        scale = condition.tensors.get("guidance_scale")
        if scale is not None and config.time_cond_proj_dim is not None:
            # to the last bit what the pipeline's own call tells its denoiser
            embedding = self.pipeline.get_guidance_scale_embedding(
                (scale.cpu() - 1).float(), embedding_dim=config.time_cond_proj_dim
            )
            inputs["timestep_cond"] = embedding.to(x_t.device, dtype)
        prediction: Tensor = denoiser(self._seen(x_t, condition).to(dtype), timesteps, **inputs).sample.float()
        return prediction

    def _seen(self, x_t: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002
        """x_t and what a variant of the denoiser sees beside it."""
        return x_t

    def _told(self, condition: Condition, dtype: torch.dtype) -> dict[str, Any]:  # noqa: ARG002
        """What a variant of the denoiser is told beside the text, as keyword arguments."""
        return {}


def unet_inputs(config: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
    """Keyword arguments of a forward pass of a U-Net with cross-attention, on the meta device.

    Raises:
        CondistillError: the denoiser asks for conditions other than text and, as Stable Diffusion XL's, sizes.
    """
    known = {"addition_embed_type": (None, "text_time"), "class_embed_type": (None,), "num_class_embeds": (None,)}
    for setting, values in known.items():
        if config.get(setting) not in values:
            raise CondistillError(
                f"the denoiser has {setting}={config[setting]!r}; only denoisers conditioned on text alone, or on "
                "text and sizes (addition_embed_type='text_time'), are known"
            )
    text_width = config.encoder_hid_dim or config.cross_attention_dim
    text_width = text_width if isinstance(text_width, int) else text_width[0]
    inputs: dict[str, Any] = {
        "sample": torch.empty(1, config.in_channels, *size, device="meta"),
        "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
        "encoder_hidden_states": torch.empty(1, text_length, text_width, device="meta"),
    }
    if config.addition_embed_type == "text_time":
        pooled_width = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.empty(1, pooled_width, device="meta"),
            "time_ids": torch.empty(1, SIZES, device="meta"),
        }
    return inputs
