"""Stable Diffusion XL: two text encoders, a pooled embedding, and the sizes of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion import SIZES, StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """A `StableDiffusionXLPipeline`, base or turbo.

    The empty prompt is what the pipeline guides against: zeros where its `force_zeros_for_empty_prompt` says so.
    """

    name = "stable_diffusion_xl"
    pipeline_classes = ("StableDiffusionXLPipeline",)

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        config, pooled = self.denoiser.config, pipeline.text_encoder_2.config.projection_dim
        heard = config.projection_class_embeddings_input_dim
        told = pooled + SIZES * (config.addition_time_embed_dim or 0)
        if pipeline.text_encoder is None or config.addition_embed_type != "text_time" or heard != told:
            raise CondistillError(
                f"the teacher's U-Net has addition_embed_type {config.addition_embed_type!r} and hears {heard} numbers "
                f"beside the text of two encoders, not the {told} of pooled text and {SIZES} sizes; give a base or "
                "turbo model of Stable Diffusion XL, not a refiner"
            )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        texts = self._encode_texts(prompts)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([not prompt for prompt in prompts], device=self.device)
            for embeds in texts.values():
                embeds[empty] = 0
        height, width = (size * self.pixels_per_latent for size in self.latent_shape[1:])
        sizes = torch.tensor([height, width, 0, 0, height, width]).to(texts["prompt_embeds"])
        return Condition({**texts, "time_ids": sizes.repeat(len(prompts), 1)})

    def _encode_texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "text_embeds": pooled}

    @torch.no_grad()
    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        # the pooled embedding, whose direction was trained to tell texts apart; the empty prompt's own, never zeros
        pooled = self._encode_texts([*prompts, ""])["text_embeds"].float()
        said = torch.tensor([bool(prompt) for prompt in prompts], device=pooled.device)
        return nn.functional.normalize((pooled[:-1] - pooled[-1]) * said[:, None])

    def _told(self, condition: Condition, dtype: torch.dtype) -> dict[str, Any]:
        return {"added_cond_kwargs": {name: condition.tensors[name].to(dtype) for name in ("text_embeds", "time_ids")}}

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        vae = self.pipeline.vae
        if vae.dtype != torch.float16 or not vae.config.force_upcast:
            return super().decode(latents)
        vae.float()  # its activations are beyond float16
        try:
            return super().decode(latents)
        finally:
            vae.half()
