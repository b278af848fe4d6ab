"""What a denoiser is told beside (x_t, t)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told beside (x_t, t): named tensors, each with the batch first.

    Callers index, join and move it, and never look inside.
    """

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Any) -> Condition:
        return Condition({name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """As `Tensor.to`, for every tensor."""
        return Condition({name: tensor.to(*args, **kwargs) for name, tensor in self.tensors.items()})

    def with_guidance_scale(self, guidance_scale: Tensor) -> Condition:
        """With a guidance scale, float64 `[B]` on the CPU, for denoisers that take one as an input."""
        return Condition({**self.tensors, "guidance_scale": guidance_scale})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Join along the batch."""
        names = parts[0].tensors
        return Condition({name: torch.cat([part.tensors[name] for part in parts]) for name in names})

    def lerp(self, other: Condition, weight: Tensor) -> Condition:
        """On the straight way to another, as `torch.lerp`: this one where `weight` `[B]` is 0, the other where 1.

        Raises:
            CondistillError: there is nothing between class labels.
        """

        def between(one: Tensor, two: Tensor) -> Tensor:
            if not one.is_floating_point():  # masks: every token that any of what is blended has
                if one.dim() == 1:
                    raise CondistillError(
                        "distill.conditioning.prompt_choice.interpolate blends prompts, and this teacher is told "
                        "class labels, which have nothing between them; set it to 0"
                    )
                share = weight.to(one.device).view(-1, *[1] * (one.dim() - 1))
                return torch.maximum(one * (share < 1), two * (share > 0))
            return torch.lerp(one, two, weight.to(one).view(-1, *[1] * (one.dim() - 1)))

        return Condition({name: between(one, other.tensors[name]) for name, one in self.tensors.items()})


def mean_token_embedding(condition: Condition, prompts: Sequence[str]) -> Tensor:
    """The `text_embedding` of prompts from their condition, the empty prompt's behind them: mean over tokens."""
    embeds, mask = condition.tensors["prompt_embeds"].float(), condition.tensors.get("prompt_attention_mask")
    weight = torch.ones_like(embeds[..., :1]) if mask is None else mask.to(embeds)[..., None]
    means = (embeds * weight).sum(1) / weight.sum(1).clamp(min=1)
    said = torch.tensor([bool(prompt) for prompt in prompts], device=means.device)  # rounding says a little too
    # less the empty prompt's: most of a mean, padding included where it is attended to, is common to all prompts
    return nn.functional.normalize((means[:-1] - means[-1]) * said[:, None])
