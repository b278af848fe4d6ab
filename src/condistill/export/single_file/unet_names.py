"""The names of a U-Net's weights in the original code of Stable Diffusion, in two numberings.

The original code counts the layers of the way down as `input_blocks` and those of the way up as `output_blocks`; a
change of the resolution is an entry of its own on the way down, and a part of the last layer on the way up. Where
layers were removed, programs number what is left without gaps, or keep the numbers of the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from condistill.export.single_file.unet_structure import UNetStructure

PREFIX = "model.diffusion_model."
Numbering = Literal["contiguous", "original"]
"""Without gaps, or as if every stage had two layers on the way down and three on the way up."""

_ORIGINAL_LAYERS = 2
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""What is in no block; the same in both numberings."""


def module_names(structure: UNetStructure, numbering: Numbering = "contiguous") -> dict[str, str]:
    """Return the original name of every module that is named differently, by its name in diffusers."""
    names = dict(_OUTSIDE)
    for name, original in (*_down(structure, numbering), *_mid(structure), *_up(structure, numbering)):
        if ".resnets." in name:
            names |= {f"{name}.{part}": f"{original}.{layer}" for part, layer in _RESNET.items()}
        else:
            names[name] = original
    return names


def original_name(name: str, modules: dict[str, str]) -> str:
    """Return the original name of a weight.

    Args:
        modules: from `module_names`.
    """
    module = name
    while module and module not in modules:
        module = module.rpartition(".")[0]
    assert module, name
    return PREFIX + modules[module] + name[len(module) :]


def _down(structure: UNetStructure, numbering: Numbering) -> Iterator[tuple[str, str]]:
    number = 0
    for stage, depths in enumerate(structure.down):
        if numbering == "original":
            number = stage * (_ORIGINAL_LAYERS + 1)
        for layer, depth in enumerate(depths):
            number += 1
            yield f"down_blocks.{stage}.resnets.{layer}", f"input_blocks.{number}.0"
            if depth:
                yield f"down_blocks.{stage}.attentions.{layer}", f"input_blocks.{number}.1"
        if stage < len(structure.down) - 1:
            number = number + 1 if numbering == "contiguous" else (stage + 1) * (_ORIGINAL_LAYERS + 1)
            yield f"down_blocks.{stage}.downsamplers.0.conv", f"input_blocks.{number}.0.op"


def _mid(structure: UNetStructure) -> Iterator[tuple[str, str]]:
    if structure.mid is None:
        return
    yield "mid_block.resnets.0", "middle_block.0"
    if structure.mid:
        yield "mid_block.attentions.0", "middle_block.1"
        yield "mid_block.resnets.1", "middle_block.2"


def _up(structure: UNetStructure, numbering: Numbering) -> Iterator[tuple[str, str]]:
    number = 0
    for stage, depths in enumerate(structure.up):
        if numbering == "original":
            number = stage * (_ORIGINAL_LAYERS + 1)
        for layer, depth in enumerate(depths):
            yield f"up_blocks.{stage}.resnets.{layer}", f"output_blocks.{number}.0"
            if depth:
                yield f"up_blocks.{stage}.attentions.{layer}", f"output_blocks.{number}.1"
            number += 1
        if stage < len(structure.up) - 1:
            last = number - 1
            position = 2 if depths[-1] else 1
            if numbering == "original" and len(depths) <= _ORIGINAL_LAYERS:
                # alone in the place of the removed layer: first where nothing was in front of it
                last, position = stage * (_ORIGINAL_LAYERS + 1) + _ORIGINAL_LAYERS, 1 if stage == 0 else 2
            yield f"up_blocks.{stage}.upsamplers.0.conv", f"output_blocks.{last}.{position}.conv"
