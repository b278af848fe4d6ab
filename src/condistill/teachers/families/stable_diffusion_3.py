"""Stable Diffusion 3 and 3.5: a transformer with joint layers for text and image, trained by flow matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition
from condistill.teachers.exportable import TextInput
from condistill.teachers.family import Family, dtype_of
from condistill.teachers.noise.flow import FlowSchedule
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.teachers.traits import LayerList

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

T5_TOKENS = 256
"""Tokens of T5 in the pipeline's call by default; without T5 it fills them with zeros."""


class StableDiffusion3(Family):
    """A `StableDiffusion3Pipeline`, with or without its third text encoder."""

    name = "stable_diffusion_3"
    pipeline_classes = ("StableDiffusion3Pipeline",)
    denoiser_name = "transformer"
    denoiser_class = "SD3Transformer2DModel"
    packages = ("sentencepiece", "protobuf")
    layer_lists = (
        LayerList(
            "transformer_blocks",
            "num_layers",
            index_keys=("dual_attention_layers",),  # only in Stable Diffusion 3.5
            joint_class="JointTransformerBlock",
            keeps_last=True,  # only the last layer is built without an output for the text
        ),
    )

    def __init__(self, pipeline: DiffusionPipeline, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        largest = self.denoiser.config.pos_embed_max_size * self.latent_multiple * self.pixels_per_latent
        if resolution is not None and resolution > largest:
            raise CondistillError(
                f"teacher.resolution is {resolution}; the position embeddings of this teacher support at most "
                f"{largest} pixels"
            )

    def build_noise(self) -> NoiseSchedule:
        return FlowSchedule(self.pipeline.scheduler, family=self.name, image_tokens=self.image_tokens)

    @property
    def text_length(self) -> int:
        return int(self.pipeline.tokenizer_max_length) + T5_TOKENS

    @property
    def prompt_reader(self) -> tuple[Any, int]:
        if self.pipeline.text_encoder_3 is None:
            return self.pipeline.tokenizer, int(self.pipeline.tokenizer_max_length)
        return self.pipeline.tokenizer_3, T5_TOKENS

    @classmethod
    def example_inputs(cls, denoiser: ModelMixin, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        config = denoiser.config
        return {
            "hidden_states": torch.empty(1, config.in_channels, *size, device="meta"),
            "timestep": torch.empty(1, device="meta"),
            "encoder_hidden_states": torch.empty(1, text_length, config.joint_attention_dim, device="meta"),
            "pooled_projections": torch.empty(1, config.pooled_projection_dim, device="meta"),
        }

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, self.device, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
        )
        return Condition({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    def text_inputs(self) -> tuple[TextInput, ...]:
        length = int(self.pipeline.tokenizer_max_length)
        clips = (TextInput("tokenizer", "input_ids", length), TextInput("tokenizer_2", "input_ids_2", length))
        has_t5 = self.pipeline.text_encoder_3 is not None
        return (*clips, TextInput("tokenizer_3", "input_ids_3", T5_TOKENS)) if has_t5 else clips

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        first = self.pipeline.text_encoder(tokens["input_ids"], output_hidden_states=True)
        second = self.pipeline.text_encoder_2(tokens["input_ids_2"], output_hidden_states=True)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        if self.pipeline.text_encoder_3 is None:
            t5 = clip.new_zeros(clip.shape[0], T5_TOKENS, self.denoiser.config.joint_attention_dim)
        else:
            t5 = self.pipeline.text_encoder_3(tokens["input_ids_3"])[0]
        clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        pooled = torch.cat([first[0], second[0]], dim=-1)
        return Condition({"prompt_embeds": torch.cat([clip, t5], dim=-2), "pooled_prompt_embeds": pooled})

    def predict(self, denoiser: ModelMixin, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype = dtype_of(denoiser)
        prediction: Tensor = denoiser(
            x_t.to(dtype),
            timestep=timesteps,
            encoder_hidden_states=condition.tensors["prompt_embeds"].to(dtype),
            pooled_projections=condition.tensors["pooled_prompt_embeds"].to(dtype),
        ).sample
        return prediction.float()
