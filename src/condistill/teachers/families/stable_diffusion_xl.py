"""Stable Diffusion XL: two text encoders, a pooled text embedding, and the size of the image as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition, normalized_difference
from condistill.teachers.exportable import TextInput
from condistill.teachers.families.stable_diffusion import TIME_IDS, StableDiffusion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class StableDiffusionXL(StableDiffusion):
    """A `StableDiffusionXLPipeline`, base or turbo.

    The empty prompt is encoded as the pipeline's call encodes it for guidance: as zeros if its config sets
    `force_zeros_for_empty_prompt`.
    """

    name = "stable_diffusion_xl"
    pipeline_classes = ("StableDiffusionXLPipeline",)

    def __init__(self, pipeline: DiffusionPipeline, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        config, pooled_width = self.denoiser.config, pipeline.text_encoder_2.config.projection_dim
        found = config.projection_class_embeddings_input_dim
        needed = pooled_width + TIME_IDS * (config.addition_time_embed_dim or 0)
        if pipeline.text_encoder is None or config.addition_embed_type != "text_time" or found != needed:
            raise CondistillError(
                f"the teacher's U-Net has addition_embed_type {config.addition_embed_type!r} and "
                f"projection_class_embeddings_input_dim {found}; this family needs two text encoders, 'text_time' and "
                f"{needed}, for pooled text and {TIME_IDS} sizes; give a base or turbo model of Stable Diffusion XL, "
                "not a refiner"
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        tensors = self._encode_text(prompts)
        if self.zeros_for_empty_prompt:
            is_empty = torch.tensor([not prompt for prompt in prompts], device=self.device)
            for embeds in tensors.values():
                embeds[is_empty] = 0
        height, width = self.image_size
        time_ids = torch.tensor([height, width, 0, 0, height, width]).to(tensors["prompt_embeds"])
        return Condition({**tensors, "time_ids": time_ids.repeat(len(prompts), 1)})

    def _encode_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "text_embeds": pooled}

    def text_inputs(self) -> tuple[TextInput, ...]:
        names = {"tokenizer": "input_ids", "tokenizer_2": "input_ids_2"}
        return tuple(
            TextInput(name, ids, int(getattr(self.pipeline, name).model_max_length)) for name, ids in names.items()
        )

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        first = self.pipeline.text_encoder(tokens["input_ids"], output_hidden_states=True)
        second = self.pipeline.text_encoder_2(tokens["input_ids_2"], output_hidden_states=True)
        embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Condition({"prompt_embeds": embeds, "text_embeds": second[0]})

    @property
    def zeros_for_empty_prompt(self) -> bool:
        return bool(self.pipeline.config.force_zeros_for_empty_prompt)

    def decoder_dtype(self, dtype: torch.dtype) -> torch.dtype:
        # its activations overflow in float16
        return torch.float32 if dtype == torch.float16 and self.pipeline.vae.config.force_upcast else dtype

    @torch.no_grad()
    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        # the pooled embedding: its direction was trained contrastively. Of the empty prompt the true one, not zeros
        pooled = self._encode_text([*prompts, ""])["text_embeds"].float()
        return normalized_difference(pooled[:-1], pooled[-1], prompts)

    def extra_inputs(self, condition: Condition, dtype: torch.dtype) -> dict[str, Any]:
        return {"added_cond_kwargs": {name: condition.tensors[name].to(dtype) for name in ("text_embeds", "time_ids")}}

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        vae = self.pipeline.vae
        if self.decoder_dtype(vae.dtype) == vae.dtype:
            return super().decode(latents)
        vae.float()
        try:
            return super().decode(latents)
        finally:
            vae.half()
