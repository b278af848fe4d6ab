"""Sana: a flow, by a transformer of linear attention over latents of a 32x autoencoder, told what Gemma reads."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition, mean_token_embedding
from condistill.teachers.family import Family
from condistill.teachers.noise.flow import FlowSchedule
from condistill.teachers.noise.schedule import NoiseSchedule


class Sana(Family):
    """A `SanaPipeline`.

    Its call sets an instruction before each prompt and none before the empty one it guides against; here the empty
    prompt is that one, so that a student practises what it is drawn with.
    """

    name = "sana"
    pipeline_classes = ("SanaPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "SanaTransformer2DModel"

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        _refuse_guidance(self.denoiser.config)
        self._instruction = signature(pipeline.__call__).parameters["complex_human_instruction"].default

    def build_noise(self) -> NoiseSchedule:
        return FlowSchedule(self.pipeline.scheduler, family=self.name, image_tokens=self.image_tokens)

    @property
    def text_length(self) -> int:
        return int(signature(self.pipeline.encode_prompt).parameters["max_sequence_length"].default)

    @classmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        config = denoiser.config
        _refuse_guidance(config)
        return {
            "hidden_states": torch.empty(1, config.in_channels, *size, device="meta"),
            "encoder_hidden_states": torch.empty(1, text_length, config.caption_channels, device="meta"),
            "encoder_attention_mask": torch.empty(1, text_length, dtype=torch.int64, device="meta"),
            "timestep": torch.empty(1, device="meta"),
        }

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str], instruction: Any) -> Condition:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts), False, device=self.device, complex_human_instruction=instruction
        )
        return Condition({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def encode(self, prompts: Sequence[str]) -> Condition:
        if all(prompts):
            return self._encode(prompts, self._instruction)
        said, rows = [prompt for prompt in prompts if prompt], torch.tensor([bool(prompt) for prompt in prompts])
        parts = [self._encode([""], None)] + ([self._encode(said, self._instruction)] if said else [])
        return Condition.cat(parts)[rows.cumsum(0) * rows]  # row 0 is the empty prompt's

    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        # less what the instruction alone says, which is common to all prompts
        return mean_token_embedding(self._encode([*prompts, ""], self._instruction), prompts)

    def predict(self, denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype, config = self._dtype(denoiser), cast("Any", denoiser.config)
        output: Tensor = denoiser(
            x_t.to(dtype),
            encoder_hidden_states=condition.tensors["prompt_embeds"].to(dtype),
            encoder_attention_mask=condition.tensors["prompt_attention_mask"],
            timestep=timesteps * config.timestep_scale,
        ).sample
        return output.float()

    def _asked(self, prompts: Sequence[str]) -> dict[str, Any]:
        # with binning, the pipeline would draw at a size that it likes better
        return super()._asked(prompts) | {"use_resolution_binning": False}


def _refuse_guidance(config: Any) -> None:
    if config.get("guidance_embeds"):
        raise CondistillError("the denoiser has guidance_embeds=True, as Sana-Sprint has; sana knows those without")
