"""LoRA files with random weights, as diffusers, peft and kohya's scripts name their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 2


def attention_layers(model: nn.Module) -> list[str]:
    """Return the paths of the projections of a model's attention layers."""
    ends = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
    return [name for name, module in model.named_modules() if name.endswith(ends) and isinstance(module, nn.Linear)]


def matrices(model: nn.Module, paths: Iterable[str], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return random matrices A `[r, in]` and B `[out, r]` for layers of a model; convolutions have 4 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path in paths:
        weight: Any = model.get_submodule(path).weight
        down = torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.3
        up = torch.randn(weight.shape[0], RANK, *[1] * (weight.dim() - 2), generator=generator) * 0.3
        found[path] = (down, up)
    return found


def peft_names(component: str, layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a LoRA as diffusers saves them."""
    found = {}
    for path, (down, up) in layers.items():
        found |= {f"{component}.{path}.lora_A.weight": down, f"{component}.{path}.lora_B.weight": up}
    return found


def kohya_names(
    prefix: str, layers: Mapping[str, tuple[Tensor, Tensor]], alpha: float | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a LoRA as kohya's scripts save them."""
    found = {}
    for path, (down, up) in layers.items():
        name = f"{prefix}_{path.replace('.', '_')}"
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        found |= {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return found


def write_lora(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write the file of a LoRA, and return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return file
