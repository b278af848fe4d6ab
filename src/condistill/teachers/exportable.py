"""What exporters of graphs need of a family: the steps of its pipeline as functions of tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from condistill.teachers.condition import Condition

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class TextInput:
    """How prompts become the tokens that one or more text encoders read."""

    tokenizer: str
    """Component of the pipeline."""
    ids: str
    """Name of the tokens `[B, L]` in `Exportable.encode_tokens`."""
    length: int
    """L: prompts are padded and truncated to it."""
    mask: str | None = None
    """Name of the mask `[B, L]`, 1 where a token is no padding; None: it is not read."""
    lowercase: bool = False
    """Whether prompts are stripped and written in lower case first."""
    prefix: str = ""
    """What is put before every prompt but the empty one."""
    empty_length: int | None = None
    """L of the empty prompt; None: `length`."""
    least: int = 1
    """Least L that `Exportable.encode_tokens` reads."""


class Exportable:
    """The steps of a pipeline that its family writes as functions of tensors, so that graphs can be made of them.

    A family that does not override `encode_tokens` works in everything but exports to graphs. The methods give what
    `Family.encode` and `Family.decode` give, which the tests of families compare.
    """

    pipeline: DiffusionPipeline
    graph_limit: ClassVar[str] = ""
    """Why no graphs can be made of the family's models; empty if they can."""

    def text_inputs(self) -> tuple[TextInput, ...]:
        """Return how prompts become tokens; empty where the family has no tokenizer."""
        return ()

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        """Return the condition of tokens `[B, L]`, named as in `text_inputs`; sizes and parts of images are not in it.

        Only the empty prompt of `zeros_for_empty_prompt` and class labels are not made of tokens.
        """
        raise NotImplementedError

    @property
    def zeros_for_empty_prompt(self) -> bool:
        """Whether the condition of the empty prompt is zeros."""
        return False

    @property
    def class_labels(self) -> Mapping[str, int] | None:
        """The classes by name, where a prompt is a class and no text; the empty prompt's is that of the empty name."""
        return None

    def decoder_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that the autoencoder computes in where the denoiser is in `dtype`."""
        return dtype

    def decode_to_tensor(self, latents: Tensor) -> Tensor:
        """Return the images `[B, 3, H, W]` in [-1, 1] of latents, in the dtype of the autoencoder."""
        vae: Any = self.pipeline.vae
        shift = getattr(vae.config, "shift_factor", None)
        scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        images: Tensor = vae.decode(scaled if shift is None else scaled + shift, return_dict=False)[0]
        return images

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the latents of images `[B, 3, H, W]` in [-1, 1]: the mode of the encoder's distribution."""
        vae: Any = self.pipeline.vae
        latents: Tensor = vae.encode(images.to(vae.device, vae.dtype), return_dict=False)[0].mode()
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled
