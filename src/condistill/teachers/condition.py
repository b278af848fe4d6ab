"""The condition of a denoiser: all its inputs other than x_t and the timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.utils.transfer import on_device

Index = Tensor | slice | list[int] | int
"""What selects samples of a batch."""


@dataclass(frozen=True)
class Condition:
    """Named tensors with the batch first. Callers index, join and move it; only its family reads the tensors."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Index) -> Condition:
        return Condition({name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Call `Tensor.to` on every tensor."""
        return Condition({name: tensor.to(*args, **kwargs) for name, tensor in self.tensors.items()})

    def with_guidance_scale(self, guidance_scale: Tensor) -> Condition:
        """Return the condition with a guidance scale, float64 `[B]` on the CPU, for denoisers that take one."""
        return Condition({**self.tensors, "guidance_scale": guidance_scale})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Join conditions along the batch."""
        names = parts[0].tensors
        return Condition({name: torch.cat([part.tensors[name] for part in parts]) for name in names})

    def lerp(self, other: Condition, weight: Tensor) -> Condition:
        """Interpolate linearly to another condition: this one where `weight` `[B]` is 0, the other one where it is 1.

        Raises:
            CondistillError: the conditions are class labels, which cannot be interpolated.
        """
        return Condition({name: _lerp(one, other.tensors[name], weight) for name, one in self.tensors.items()})


def _lerp(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Interpolate a tensor `[B, ...]`; of attention masks, return the union of those with a weight above 0."""
    if one.is_floating_point():
        return torch.lerp(one, other, on_device(weight.to(one.dtype), one.device).view(-1, *[1] * (one.dim() - 1)))
    if one.dim() == 1:
        raise CondistillError(
            "distill.conditioning.prompt_choice.interpolate blends prompts, and this teacher takes class labels, which "
            "cannot be blended; set it to 0"
        )
    weight = on_device(weight, one.device).view(-1, *[1] * (one.dim() - 1))
    return torch.maximum(one * (weight < 1), other * (weight > 0))


def mean_token_embedding(condition: Condition, prompts: Sequence[str]) -> Tensor:
    """Return the mean token embedding of each prompt, less that of the empty prompt, with unit length.

    The empty prompt is subtracted because most of a mean, with the padding that is attended to, is common to all
    prompts.

    Args:
        condition: of the prompts, followed by that of the empty prompt: length B + 1.

    Returns:
        float32 `[B, D]`; exactly zero for empty prompts.
    """
    embeds, mask = condition.tensors["prompt_embeds"].float(), condition.tensors.get("prompt_attention_mask")
    weight = torch.ones_like(embeds[..., :1]) if mask is None else mask.to(embeds)[..., None]
    means = (embeds * weight).sum(1) / weight.sum(1).clamp(min=1)
    return normalized_difference(means[:-1], means[-1], prompts)


def normalized_difference(embeddings: Tensor, empty: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the embeddings `[B, D]` less the empty prompt's `[D]`, with unit length, and zeros for empty prompts."""
    # without the factor, rounding would leave a small difference, and it would be scaled to unit length
    is_given = torch.tensor([bool(prompt) for prompt in prompts], device=embeddings.device)
    return nn.functional.normalize((embeddings - empty) * is_given[:, None])
