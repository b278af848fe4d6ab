"""The names and numbers of a LoRA in a file: as diffusers and peft spell them, or as kohya's scripts do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.lora import LoraLayer

LoraLayout = Literal["diffusers", "kohya"]
LAYOUTS: tuple[str, ...] = get_args(LoraLayout)
_KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def check_layout(layout: str, components: Sequence[str]) -> None:
    """Check that LoRAs of a pipeline can be written in a layout.

    Args:
        components: of the pipeline.

    Raises:
        CondistillError: there is no such layout, or the pipeline has no U-Net and the layout is kohya's.
    """
    if layout not in LAYOUTS:
        raise CondistillError(f"--lora-layout {layout} is not known; choose from {', '.join(LAYOUTS)}")
    if layout == "kohya" and "unet" not in components:
        raise CondistillError("--lora-layout kohya is for pipelines with a U-Net; use --lora-layout diffusers")


def write_lora(file: Path, layers: Sequence[LoraLayer], layout: str, *, components: Sequence[str]) -> None:
    """Write a LoRA to a safetensors file.

    The alpha of every layer is its rank, and the rank is the same in all layers of a component: programs differ in what
    they read of alphas, and some versions of diffusers scale layers of one rank by the alpha of another. So B has the
    factor in it, and matrices of a lower rank end in zeros. What is added does not change.

    Args:
        components: of the pipeline.
    """
    ranks: dict[str, int] = {}
    for layer in layers:
        ranks[layer.component] = max(len(layer.down), ranks.get(layer.component, 0))
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        down, up = _padded(layer, ranks[layer.component])
        tensors |= _named(layer, down, up, layout, has_two_encoders="text_encoder_2" in components)
    save_file(tensors, file, {"format": "pt"})


def _named(layer: LoraLayer, down: Tensor, up: Tensor, layout: str, *, has_two_encoders: bool) -> dict[str, Tensor]:
    """Return the tensors of a layer by their names in a layout."""
    if layout == "diffusers":
        name = f"{layer.component}.{layer.module}"
        return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    prefix = _KOHYA_PREFIXES[layer.component]
    prefix = "lora_te" if prefix == "lora_te1" and not has_two_encoders else prefix
    name = f"{prefix}_{layer.module.replace('.', '_')}"
    alpha = torch.tensor(float(len(down)))
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}


def _padded(layer: LoraLayer, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and factor times B, with zeros up to a rank; B is float32 where its dtype cannot hold it exactly."""
    exact = layer.up.float() * layer.factor
    narrow = exact.to(layer.up.dtype)
    up = narrow if torch.equal(narrow.float(), exact) else exact
    missing = rank - len(layer.down)
    down = torch.cat([layer.down, layer.down.new_zeros(missing, *layer.down.shape[1:])])
    return down.contiguous(), torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], dim=1).contiguous()
