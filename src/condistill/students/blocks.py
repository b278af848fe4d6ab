"""Students with fewer layers: block removal as in BK-SDM (Kim et al., arXiv 2305.15798, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from condistill.errors import CondistillError
from condistill.settings import BlockPreset
from condistill.students.costs import build_on_meta, plain_config
from condistill.students.width import importance_of, inherit, keep_channels, take

_PER_STAGE = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "only_cross_attention")


def config_without_blocks(config: dict[str, Any], preset: BlockPreset) -> dict[str, Any]:
    """The student's config: one layer per stage; `b-small` has no mid block, `b-tiny` no innermost stage either.

    Raises:
        CondistillError: there is no second layer or no second stage to remove.
    """
    layers = config["layers_per_block"]
    if max([layers] if isinstance(layers, int) else layers) < 2:
        raise CondistillError(
            f"preset {preset!r} keeps one layer of every stage, but the teacher has layers_per_block={layers}; "
            "choose a width instead"
        )
    smaller = config | {"layers_per_block": 1}
    for key, kept in (("transformer_layers_per_block", slice(0, 1)), ("reverse_transformer_layers_per_block", None)):
        if isinstance(config.get(key), list | tuple):
            smaller[key] = tuple(_kept_layers(entry, kept) for entry in config[key])
    if preset != "b-base":
        smaller["mid_block_type"] = None
    if preset == "b-tiny":
        if len(config["block_out_channels"]) < 2:
            raise CondistillError("preset 'b-tiny' removes the innermost stage, but the teacher has only one")
        for key in (*_PER_STAGE, "down_block_types", "transformer_layers_per_block"):
            if isinstance(smaller.get(key), list | tuple):
                smaller[key] = tuple(smaller[key][:-1])
        for key in ("up_block_types", "reverse_transformer_layers_per_block"):
            if smaller.get(key) is not None:
                smaller[key] = tuple(smaller[key][1:])
    return smaller


def _kept_layers(entry: Any, kept: slice | None) -> Any:
    """Transformer depths of one stage: first layer on the way down, first and last on the way up."""
    if not isinstance(entry, list | tuple):
        return entry
    return tuple(entry[kept]) if kept is not None else (entry[0], entry[-1])


def layer_sources(teacher: UNet2DConditionModel, student: UNet2DConditionModel) -> dict[str, str]:
    """Student layer to teacher layer, as module paths, for a student with blocks removed.

    The last layer of an up block reads the skip of the stage above, the others the skips of their own stage:
    of each up block the first and the last layer are kept.
    """
    shift = len(teacher.up_blocks) - len(student.up_blocks)
    sources = {name: name for name, _ in student.named_children() if name not in ("down_blocks", "up_blocks")}
    for way in ("down_blocks", "up_blocks"):
        for i, block in enumerate(getattr(student, way)):
            j = i + shift if way == "up_blocks" else i
            for part, layers in block.named_children():
                count = len(getattr(getattr(teacher, way)[j], part))
                for k in range(len(layers)):
                    sources[f"{way}.{i}.{part}.{k}"] = f"{way}.{j}.{part}.{count - 1 if k else 0}"
    return sources


def remove_blocks(teacher: UNet2DConditionModel, preset: BlockPreset) -> UNet2DConditionModel:
    """A smaller denoiser with copies of the teacher's surviving layers, float32; on meta for a teacher on meta.

    Where the two innermost stages differ in width, the first up block of `b-tiny` reads a narrower stream than
    its teacher did: it keeps the channels that it read most strongly.

    Raises:
        CondistillError: the teacher has nothing to remove, or a layer does not fit (both layers are named).
    """
    student = build_on_meta(type(teacher), config_without_blocks(plain_config(teacher), preset))
    given = teacher.state_dict()
    entrance = _entrance(teacher, student) if preset == "b-tiny" else {}
    weights: dict[str, Tensor] = {}
    for layer, source in layer_sources(teacher, student).items():
        for name, parameter in student.get_submodule(layer).state_dict(prefix=f"{layer}.").items():
            origin = source + name.removeprefix(layer)
            if origin not in given:
                raise CondistillError(f"the student's {name} comes from {origin}, which the teacher does not have")
            weights[name] = take(given[origin], entrance.get(name, ()))
            if weights[name].shape != parameter.shape:
                raise CondistillError(
                    f"the student's {name} has shape {tuple(parameter.shape)} and the teacher's {origin}, from "
                    f"which it comes, {tuple(given[origin].shape)}; choose another preset, or random weights"
                )
    return inherit(student, weights)


def _entrance(teacher: UNet2DConditionModel, student: UNet2DConditionModel) -> dict[str, tuple[Tensor | None, ...]]:
    """Which inputs the student's innermost up block keeps, where the stream that enters it became narrower."""
    wide, narrow = teacher.config.block_out_channels[-1], student.config.block_out_channels[-1]
    if narrow >= wide:
        return {}
    resnet = teacher.up_blocks[1].resnets[0]
    reads = importance_of(*(layer.weight.transpose(0, 1) for layer in (resnet.conv1, resnet.conv_shortcut)))
    hidden = keep_channels(reads[:wide], narrow, blocks=resnet.norm1.num_groups)
    skip = torch.arange(wide, resnet.in_channels)
    inputs = torch.cat([hidden, skip])
    name = "up_blocks.0.resnets.0"
    return {
        f"{name}.norm1.weight": (inputs,),
        f"{name}.norm1.bias": (inputs,),
        f"{name}.conv1.weight": (None, inputs),
        f"{name}.conv_shortcut.weight": (None, inputs),
    }
