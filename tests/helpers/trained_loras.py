"""LoRAs that are trained on a teacher in a few steps, towards a change that images show clearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.lora import LoraLayer


@dataclass(frozen=True)
class Example:
    """A batch of inputs, and what the denoiser with the LoRA is to predict for them."""

    x_t: Tensor
    timesteps: Tensor
    condition: Condition
    target: Tensor


class _LowRank(nn.Module):
    """Adds a product of two matrices to a weight."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, *weight.shape[1:]) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, *[1] * (weight.dim() - 2)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up.flatten(1) @ self.down.flatten(1)).reshape(weight.shape)


def train_lora(
    family: Family, paths: Sequence[str], examples: Sequence[Example], *, rank: int = 4, learning_rate: float = 1e-2
) -> list[LoraLayer]:
    """Return a LoRA of the denoiser, trained with one step for each example; the denoiser is as before.

    Args:
        paths: of the layers that it changes.
    """
    denoiser: Any = family.denoiser
    added = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for path in paths:
            layer = denoiser.get_submodule(path)
            added[path] = _LowRank(layer.weight, rank)
            parametrize.register_parametrization(layer, "weight", added[path])
    optimizer = torch.optim.Adam([p for each in added.values() for p in each.parameters()], learning_rate)
    for example in examples:
        found = family.predict(denoiser, example.x_t, example.timesteps, example.condition)
        optimizer.zero_grad()
        (found - example.target).square().mean().backward()
        optimizer.step()
    for path in paths:
        parametrize.remove_parametrizations(denoiser.get_submodule(path), "weight", leave_parametrized=False)
    name = family.denoiser_name
    return [LoraLayer(name, path, each.down.detach(), each.up.detach(), 1.0) for path, each in added.items()]


def noised(family: Family, latents: Tensor, condition: Condition, *, batch: int, count: int) -> list[Example]:
    """Return examples of denoising latents `[N, C, h, w]` with their conditions."""
    generator, examples = torch.Generator().manual_seed(0), []
    for _ in range(count):
        rows = torch.randint(len(latents), (batch,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        timesteps = family.noise.timesteps(torch.rand(batch, dtype=torch.float64, generator=generator))
        x_t = family.noise.add_noise(latents[rows], noise, timesteps)
        examples.append(Example(x_t, timesteps, condition[rows], family.noise.target(latents[rows], noise, timesteps)))
    return examples
