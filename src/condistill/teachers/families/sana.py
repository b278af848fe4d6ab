"""Sana: a transformer with linear attention over the latents of a 32x autoencoder, trained by flow matching.

Its text encoder is Gemma, a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition, mean_token_embedding
from condistill.teachers.exportable import TextInput
from condistill.teachers.family import Family, dtype_of
from condistill.teachers.noise.flow import FlowSchedule
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.teachers.traits import LayerList

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


class Sana(Family):
    """A `SanaPipeline`.

    Its call puts an instruction before each prompt, but not before the empty prompt of guidance. The empty prompt is
    therefore encoded without the instruction, so that training and sampling agree.
    """

    name = "sana"
    pipeline_classes = ("SanaPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "SanaTransformer2DModel"
    graph_limit = (
        "torch's exporter to ONNX drops the 1e-15 that keeps Sana's linear attention from dividing by 0, so images "
        "can be NaN"
    )
    layer_lists = (LayerList("transformer_blocks", "num_layers"),)
    packages = ("sentencepiece", "protobuf")
    # with resolution binning, the pipeline would generate another size than the one it is given
    call_arguments: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}

    def __init__(self, pipeline: DiffusionPipeline, *, resolution: int | None = None) -> None:
        super().__init__(pipeline, resolution=resolution)
        _refuse_guidance_embeds(self.denoiser.config)
        self._instruction = signature(pipeline.__call__).parameters["complex_human_instruction"].default

    def build_noise(self) -> NoiseSchedule:
        return FlowSchedule(self.pipeline.scheduler, family=self.name, image_tokens=self.image_tokens)

    @property
    def text_length(self) -> int:
        return int(signature(self.pipeline.encode_prompt).parameters["max_sequence_length"].default)

    @classmethod
    def example_inputs(cls, denoiser: ModelMixin, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        config = denoiser.config
        _refuse_guidance_embeds(config)
        return {
            "hidden_states": torch.empty(1, config.in_channels, *size, device="meta"),
            "encoder_hidden_states": torch.empty(1, text_length, config.caption_channels, device="meta"),
            "encoder_attention_mask": torch.empty(1, text_length, dtype=torch.int64, device="meta"),
            "timestep": torch.empty(1, device="meta"),
        }

    def encode(self, prompts: Sequence[str]) -> Condition:
        given = [prompt for prompt in prompts if prompt]
        if len(given) == len(prompts):
            return self._encode(prompts, self._instruction)
        parts = [self._encode([""], None)] + ([self._encode(given, self._instruction)] if given else [])
        is_given = torch.tensor([bool(prompt) for prompt in prompts])
        return Condition.cat(parts)[is_given.cumsum(0) * is_given]  # row 0 is the empty prompt

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str], instruction: list[str] | None) -> Condition:
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            list(prompts), False, device=self.device, complex_human_instruction=instruction
        )
        return Condition({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def text_inputs(self) -> tuple[TextInput, ...]:
        instruction, length = "\n".join(self._instruction), self.text_length
        return (
            TextInput(
                "tokenizer",
                "input_ids",
                len(self.pipeline.tokenizer.encode(instruction)) + length - 2,
                mask="attention_mask",
                lowercase=True,
                prefix=instruction,
                empty_length=length,
                least=length,
            ),
        )

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        mask, last = tokens["attention_mask"], self.text_length - 1
        embeds = self.pipeline.text_encoder(tokens["input_ids"], attention_mask=mask)[0]
        # the first token and the last ones, as the pipeline's call selects them
        parts = [torch.cat([each[:, :1], each[:, -last:]], dim=1) for each in (embeds, mask)]
        return Condition({"prompt_embeds": parts[0], "prompt_attention_mask": parts[1]})

    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        # the empty prompt with the instruction, because the instruction is common to all prompts
        return mean_token_embedding(self._encode([*prompts, ""], self._instruction), prompts)

    def predict(self, denoiser: ModelMixin, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        dtype = dtype_of(denoiser)
        prediction: Tensor = denoiser(
            x_t.to(dtype),
            encoder_hidden_states=condition.tensors["prompt_embeds"].to(dtype),
            encoder_attention_mask=condition.tensors["prompt_attention_mask"],
            timestep=timesteps * denoiser.config.timestep_scale,
        ).sample
        return prediction.float()


def _refuse_guidance_embeds(config: Mapping[str, Any]) -> None:
    if config.get("guidance_embeds"):
        raise CondistillError(
            "the denoiser has guidance_embeds=True, as Sana-Sprint has; family sana supports only denoisers without it"
        )
