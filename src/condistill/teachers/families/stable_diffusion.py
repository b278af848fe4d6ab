"""Stable Diffusion 1.x and 2.x: a U-Net with cross-attention to CLIP tokens, with epsilon- or v-prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition
from condistill.teachers.configs import unusable
from condistill.teachers.exportable import TextInput
from condistill.teachers.family import Family, dtype_of
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.teachers.traits import GuidanceSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

TIME_IDS = 6
"""Numbers in the size condition of Stable Diffusion XL: original size, top left corner of the crop, target size."""

_MAX_TEXT_LENGTH = 10**5
"""Tokens; transformers gives a tokenizer without a length 10**30, with which no pipeline can encode prompts."""


class StableDiffusion(Family):
    """A `StableDiffusionPipeline`."""

    name = "stable_diffusion"
    pipeline_classes = ("StableDiffusionPipeline",)
    denoiser_name = "unet"
    denoiser_class = "UNet2DConditionModel"
    can_cut_width = True
    guidance = GuidanceSpec(config_key="time_cond_proj_dim", projection="time_embedding.cond_proj")

    def __init__(self, pipeline: DiffusionPipeline, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        channels = int(self.denoiser.config.in_channels)
        if channels != self.input_channels:
            raise CondistillError(
                f"the teacher's U-Net takes {channels} channels and its latents have {self.latent_channels}; family "
                f"{self.name} needs a U-Net that takes {self.input_channels}. An in-painting U-Net (9) needs a "
                "StableDiffusionInpaintPipeline, a text-to-image U-Net (4) a StableDiffusionPipeline"
            )
        if self.text_length > _MAX_TEXT_LENGTH:
            raise unusable("tokenizer/tokenizer_config.json", "model_max_length is missing or no length of a prompt")

    def build_noise(self) -> NoiseSchedule:
        return DiffusionSchedule(self.pipeline.scheduler, family=self.name)

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.vae.config.latent_channels)

    @property
    def input_channels(self) -> int:
        """Channels of `denoiser_input`."""
        return self.latent_channels

    @property
    def text_length(self) -> int:
        return int(self.pipeline.tokenizer.model_max_length)

    @classmethod
    def example_inputs(cls, denoiser: ModelMixin, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        return unet_inputs(denoiser.config, size, text_length)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return Condition({"prompt_embeds": embeds})

    def text_inputs(self) -> tuple[TextInput, ...]:
        has_mask = getattr(self.pipeline.text_encoder.config, "use_attention_mask", None)
        return (TextInput("tokenizer", "input_ids", self.text_length, mask="attention_mask" if has_mask else None),)

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        encoder = self.pipeline.text_encoder
        return Condition(
            {"prompt_embeds": encoder(tokens["input_ids"], attention_mask=tokens.get("attention_mask"))[0]}
        )

    def predict(self, denoiser: ModelMixin, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype = dtype_of(denoiser)
        inputs = {
            "encoder_hidden_states": condition.tensors["prompt_embeds"].to(dtype),
            **self.extra_inputs(condition, dtype),
        }
        guidance_scale = condition.tensors.get("guidance_scale")
        if guidance_scale is not None and denoiser.config.time_cond_proj_dim is not None:
            # bit-identical to the pipeline's call, which subtracts 1
            embedding = self.pipeline.get_guidance_scale_embedding(
                (guidance_scale.cpu() - 1).float(), embedding_dim=denoiser.config.time_cond_proj_dim
            )
            inputs["timestep_cond"] = embedding.to(x_t.device, dtype)
        prediction: Tensor = denoiser(self.denoiser_input(x_t, condition).to(dtype), timesteps, **inputs).sample
        return prediction.float()

    def denoiser_input(self, x_t: Tensor, condition: Condition) -> Tensor:  # noqa: ARG002
        """Return the input of the first convolution: x_t, and in variants an image condition as further channels."""
        return x_t

    def extra_inputs(self, condition: Condition, dtype: torch.dtype) -> dict[str, Any]:  # noqa: ARG002
        """Return keyword arguments of the denoiser that only variants have."""
        return {}


def unet_inputs(config: Mapping[str, Any], size: tuple[int, int], text_length: int) -> dict[str, Any]:
    """Return keyword arguments for a forward pass of a U-Net with cross-attention, on the meta device.

    Raises:
        CondistillError: the U-Net needs conditions other than text and the sizes of Stable Diffusion XL.
    """
    supported = {"addition_embed_type": (None, "text_time"), "class_embed_type": (None,), "num_class_embeds": (None,)}
    for key, values in supported.items():
        if config.get(key) not in values:
            raise CondistillError(
                f"the denoiser has {key}={config[key]!r}; only denoisers conditioned on text, or on text and sizes "
                "(addition_embed_type='text_time'), are supported"
            )
    text_width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    text_width = text_width if isinstance(text_width, int) else text_width[0]
    inputs: dict[str, Any] = {
        "sample": torch.empty(1, config["in_channels"], *size, device="meta"),
        "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
        "encoder_hidden_states": torch.empty(1, text_length, text_width, device="meta"),
    }
    if config["addition_embed_type"] == "text_time":
        width = config["projection_class_embeddings_input_dim"] - TIME_IDS * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.empty(1, width, device="meta"),
            "time_ids": torch.empty(1, TIME_IDS, device="meta"),
        }
    return inputs
