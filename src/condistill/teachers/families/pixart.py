"""PixArt-alpha and PixArt-Sigma: a transformer that attends to T5's tokens; of its output only the mean is matched."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.schedule import NoiseSchedule


class PixArt(Family):
    """A `PixArtAlphaPipeline` or a `PixArtSigmaPipeline`."""

    name = "pixart"
    pipeline_classes = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    denoiser_name = "transformer"
    denoiser_class = "PixArtTransformer2DModel"

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        config, kind = self.denoiser.config, type(pipeline).__name__
        # the one case in which diffusers' own call tells sizes
        if _is_told_sizes(config) and (kind, config.sample_size) != ("PixArtAlphaPipeline", 128):
            raise CondistillError(
                f"the teacher's transformer is told the image's size, and a {kind} with sample_size "
                f"{config.sample_size} tells it none; set use_additional_conditions to false in its config, or use a "
                "PixArtAlphaPipeline with sample_size 128"
            )

    def build_noise(self) -> NoiseSchedule:
        return DiffusionSchedule(self.pipeline.scheduler, family=self.name)

    @property
    def text_length(self) -> int:
        return int(signature(self.pipeline.encode_prompt).parameters["max_sequence_length"].default)

    @classmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        config = denoiser.config
        text_width = config.caption_channels or config.cross_attention_dim
        return {
            "hidden_states": torch.empty(1, config.in_channels, *size, device="meta"),
            "encoder_hidden_states": torch.empty(1, text_length, text_width, device="meta"),
            "encoder_attention_mask": torch.empty(1, text_length, dtype=torch.int64, device="meta"),
            "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
            "added_cond_kwargs": _sizes(config, torch.empty(1, 2, device="meta")),
        }

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        embeds, mask, _, _ = self.pipeline.encode_prompt(list(prompts), False, device=self.device, clean_caption=False)
        return Condition({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def predict(self, denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype, embeds = self._dtype(denoiser), condition.tensors["prompt_embeds"]
        height, width = (size * self.pixels_per_latent for size in x_t.shape[-2:])
        output: Tensor = denoiser(
            x_t.to(dtype),
            encoder_hidden_states=embeds.to(dtype),
            encoder_attention_mask=condition.tensors["prompt_attention_mask"],
            timestep=timesteps,
            added_cond_kwargs=_sizes(cast("Any", denoiser.config), embeds.new_tensor([[height, width]] * len(x_t))),
        ).sample
        return output[:, : x_t.shape[1]].float()  # a learned variance follows the mean

    def _asked(self, prompts: Sequence[str]) -> dict[str, Any]:
        # with binning, the pipeline would draw at a size that it likes better
        return super()._asked(prompts) | {"use_resolution_binning": False, "clean_caption": False}


def _is_told_sizes(config: Any) -> bool:
    told = config.get("use_additional_conditions")
    return bool(config.sample_size == 128 if told is None else told)


def _sizes(config: Any, resolution: Tensor) -> dict[str, Tensor | None]:
    """The image's size as the transformer takes it, from heights and widths in pixels `[B, 2]`."""
    if not _is_told_sizes(config):
        return {"resolution": None, "aspect_ratio": None}
    return {"resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}
