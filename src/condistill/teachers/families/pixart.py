"""PixArt-alpha and PixArt-Sigma: a transformer with cross-attention to T5 tokens.

Its output holds a mean and a learned variance; only the mean is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition
from condistill.teachers.exportable import TextInput
from condistill.teachers.family import Family, dtype_of
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.teachers.traits import LayerList

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


class PixArt(Family):
    """A `PixArtAlphaPipeline` or a `PixArtSigmaPipeline`."""

    name = "pixart"
    pipeline_classes = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    denoiser_name = "transformer"
    denoiser_class = "PixArtTransformer2DModel"
    layer_lists = (LayerList("transformer_blocks", "num_layers"),)
    packages = ("sentencepiece", "protobuf")
    # with resolution binning, the pipeline would generate another size than the one it is given
    call_arguments: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False, "clean_caption": False}

    def __init__(self, pipeline: DiffusionPipeline, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        config, pipeline_class = self.denoiser.config, type(pipeline).__name__
        # the only case in which the pipeline's call gives the transformer a size
        if _takes_size(config) and (pipeline_class, config.sample_size) != ("PixArtAlphaPipeline", 128):
            raise CondistillError(
                f"the teacher's transformer takes the size of the image, and a {pipeline_class} with sample_size "
                f"{config.sample_size} does not give it; set use_additional_conditions to false in the transformer's "
                "config, or use a PixArtAlphaPipeline with sample_size 128"
            )

    def build_noise(self) -> NoiseSchedule:
        return DiffusionSchedule(self.pipeline.scheduler, family=self.name)

    @property
    def text_length(self) -> int:
        return int(signature(self.pipeline.encode_prompt).parameters["max_sequence_length"].default)

    @classmethod
    def example_inputs(cls, denoiser: ModelMixin, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        config = denoiser.config
        text_width = config.caption_channels or config.cross_attention_dim
        return {
            "hidden_states": torch.empty(1, config.in_channels, *size, device="meta"),
            "encoder_hidden_states": torch.empty(1, text_length, text_width, device="meta"),
            "encoder_attention_mask": torch.empty(1, text_length, dtype=torch.int64, device="meta"),
            "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
            "added_cond_kwargs": _size_condition(config, torch.empty(1, 2, device="meta")),
        }

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        embeds, mask, _, _ = self.pipeline.encode_prompt(list(prompts), False, device=self.device, clean_caption=False)
        return Condition({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def text_inputs(self) -> tuple[TextInput, ...]:
        return (TextInput("tokenizer", "input_ids", self.text_length, mask="attention_mask", lowercase=True),)

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        mask = tokens["attention_mask"]
        embeds = self.pipeline.text_encoder(tokens["input_ids"], attention_mask=mask)[0]
        return Condition({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def predict(self, denoiser: ModelMixin, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype, embeds = dtype_of(denoiser), condition.tensors["prompt_embeds"]
        # sizes stay symbols where this is traced to a graph, so they are in no list
        sides = [embeds.new_full((x_t.shape[0], 1), side * self.pixels_per_latent) for side in x_t.shape[-2:]]
        output: Tensor = denoiser(
            x_t.to(dtype),
            encoder_hidden_states=embeds.to(dtype),
            encoder_attention_mask=condition.tensors["prompt_attention_mask"],
            timestep=timesteps,
            added_cond_kwargs=_size_condition(denoiser.config, torch.cat(sides, dim=1)),
        ).sample
        return output[:, : x_t.shape[1]].float()  # without the learned variance


def _takes_size(config: Mapping[str, Any]) -> bool:
    """Whether the transformer takes the size of the image; diffusers decides by the sample size if the key is unset."""
    is_set = config.get("use_additional_conditions")
    return bool(config["sample_size"] == 128 if is_set is None else is_set)


def _size_condition(config: Mapping[str, Any], size: Tensor) -> dict[str, Tensor | None]:
    """Return the transformer's size condition for heights and widths in pixels `[B, 2]`."""
    if not _takes_size(config):
        return {"resolution": None, "aspect_ratio": None}
    return {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
