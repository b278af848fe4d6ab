"""Remove layers of a U-Net: all but those that are listed, or all but those that BK-SDM and KOALA keep.

BK-SDM is Kim et al., arXiv 2305.15798, section 3; KOALA is Lee et al., NeurIPS 2024, arXiv 2312.04005, section 3.
The layers that are left must be ones that a diffusers config can describe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from condistill.config.sections import BlockPreset
from condistill.errors import CondistillError, nearest
from condistill.students.layer_map import Selection, WeightSource, take
from condistill.students.width import inherit, keep_channels, weight_norms
from condistill.utils.meta import build_on_meta, plain_config

Layers = dict[str, tuple[int, ...]]
"""Indices of layers, by list of layers.

In `down_blocks.i` and `up_blocks.i` a layer is a resnet with its attention. `mid_block` is a list of one layer: the
block itself. In `<block>.transformer_blocks` a layer is the transformer block at that index, in each attention of the
block.
"""

_TRANSFORMERS = ".transformer_blocks"
_PER_STAGE = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "only_cross_attention")
_KOALA: dict[str, int] = {"koala-1b": 6, "koala-700m": 5}
"""How many of the 10 transformer blocks in each attention of the innermost stage of Stable Diffusion XL are kept."""


def layer_lists(teacher: UNet2DConditionModel) -> Layers:
    """Return every layer of every list that can be shortened.

    Where the attentions of a block differ in depth, `transformer_blocks` are those that all of them have.
    """
    names = [name for path in ("down_blocks", "up_blocks") for name in _blocks(path, len(teacher.down_blocks))]
    lists: Layers = {}
    for name in (*names, *(["mid_block"] if teacher.mid_block is not None else [])):
        lists[name] = (0,) if name == "mid_block" else tuple(range(len(teacher.get_submodule(name).resnets)))
        if depths := _depths(teacher, name):
            lists[name + _TRANSFORMERS] = tuple(range(min(depths)))
    return lists


def preset_layers(teacher: UNet2DConditionModel, preset: BlockPreset) -> Layers:
    """Return the layers that a preset keeps: the first of every down block, the first and the last of every up block.

    Raises:
        CondistillError: the teacher has no second layer or no second stage to remove, or has not the shape that KOALA
            needs.
    """
    lists, stages = layer_lists(teacher), len(teacher.down_blocks)
    if max(len(lists[name]) for name in _blocks("down_blocks", stages)) < 2:
        raise CondistillError(
            f"preset {preset!r} keeps one layer of every stage, but the teacher has "
            f"layers_per_block={teacher.config.layers_per_block}; choose a width instead"
        )
    keep = {name: lists[name][:1] for name in _blocks("down_blocks", stages)}
    keep |= {name: (lists[name][0], lists[name][-1]) for name in _blocks("up_blocks", stages)}
    if preset in ("b-small", "b-tiny", "koala-700m") and "mid_block" in lists:
        keep["mid_block"] = ()
    if preset == "b-tiny":
        if stages < 2:
            raise CondistillError("preset 'b-tiny' removes the innermost stage, but the teacher has only one")
        keep |= {f"down_blocks.{stages - 1}": (), "up_blocks.0": ()}
    if preset in _KOALA:
        inner = [name + _TRANSFORMERS for name in ("down_blocks.2", "mid_block", "up_blocks.0")]
        if stages != 3 or any(len(lists.get(name, ())) != 10 for name in inner):
            raise CondistillError(
                f"preset {preset!r} is for Stable Diffusion XL, with three stages and 10 transformer blocks in each "
                f"attention of the innermost; this teacher has {stages} and transformer_layers_per_block="
                f"{teacher.config.transformer_layers_per_block}; choose b-base or b-small, or list the layers in "
                "student.keep"
            )
        if "mid_block" in keep:  # removed
            inner.remove("mid_block" + _TRANSFORMERS)
        keep |= {name: tuple(range(_KOALA[preset])) for name in inner}
    return keep


def kept_layers(teacher: UNet2DConditionModel, keep: Mapping[str, Sequence[int]]) -> Layers:
    """Return the layers that are kept of every list; a list that `keep` does not name is kept whole.

    Raises:
        CondistillError: there is no such list or layer, or a diffusers config cannot describe the layers that are left.
    """
    lists, stages = layer_lists(teacher), len(teacher.down_blocks)
    for name, indices in keep.items():
        if name not in lists:
            raise CondistillError(f"student.keep names {name!r}, and there is no such list{nearest(name, lists)}")
        if list(indices) != sorted(set(indices)) or not set(indices) <= set(lists[name]):
            available = f"layers 0 to {len(lists[name]) - 1}" if len(lists[name]) > 1 else "layer 0 only"
            raise CondistillError(
                f"student.keep.{name} is {list(indices)}; {name} has {available}: list those to keep, each once, "
                "ascending"
            )
    # transformer blocks are kept whole unless named, even where attentions differ in depth
    kept = {name: layers for name, layers in lists.items() if not name.endswith(_TRANSFORMERS)}
    kept |= {name: tuple(indices) for name, indices in keep.items()}
    for name in keep:
        if not kept[name.removesuffix(_TRANSFORMERS)] and keep[name]:
            raise CondistillError(f"student.keep.{name} lists layers of a block of which none is kept; leave it out")
    student_stages = _student_stages(kept, stages)
    if student_stages < stages and kept.get("mid_block"):
        raise CondistillError(
            f"student.keep leaves the mid block without its stage, down_blocks.{stages - 1}; add mid_block: []"
        )
    for stage in range(student_stages):
        _check_stage(teacher, kept, stage, student_stages)
    _check_mid_block(teacher, kept, student_stages)
    return kept


def _student_stages(kept: Layers, stages: int) -> int:
    """Return the number of stages of the student: innermost stages without any layer are removed."""
    count = stages
    while count and not kept[f"down_blocks.{count - 1}"] and not kept[f"up_blocks.{stages - count}"]:
        count -= 1
    if not count:
        raise CondistillError("student.keep leaves no stage; keep layers of down_blocks.0 at least")
    return count


def _check_stage(teacher: UNet2DConditionModel, kept: Layers, stage: int, student_stages: int) -> None:
    """Refuse a stage that lacks the layers which its skip connections and its neighbours' widths need."""
    channels, last = teacher.config.block_out_channels, len(teacher.down_blocks) - 1
    down, up = f"down_blocks.{stage}", f"up_blocks.{last - stage}"
    if not kept[down] or not kept[up]:
        raise CondistillError(
            f"student.keep leaves {down if not kept[down] else up} without layers; only whole stages can be removed, "
            f"the innermost first: keep no layer of {down}, {up}, mid_block and all deeper stages, or some of each"
        )
    if len(kept[up]) != len(kept[down]) + 1:
        raise CondistillError(
            f"student.keep leaves {len(kept[down])} of the layers of {down} and {len(kept[up])} of {up}, which needs "
            f"one for the skip of each layer of {down} and one for the skip of the stage above: keep "
            f"{len(kept[down]) + 1} layers of {up}"
        )
    end = len(teacher.get_submodule(up).resnets) - 1
    if kept[up][-1] != end:
        raise CondistillError(
            f"student.keep.{up} is {list(kept[up])}; add its last layer, {end}, the only one that fits the skip of the "
            "stage above"
        )
    for name, before in ((down, stage - 1), (up, stage + 1)):
        if 0 <= before < student_stages and channels[before] != channels[stage] and 0 not in kept[name]:
            raise CondistillError(
                f"student.keep.{name} is {list(kept[name])}; add layer 0, the only one that takes {channels[before]} "
                f"channels to {channels[stage]}"
            )


def _check_mid_block(teacher: UNet2DConditionModel, kept: Layers, student_stages: int) -> None:
    """Refuse a mid block whose depth differs from that of the attention before it: the config has one number."""
    if not kept.get("mid_block") or not _depths(teacher, "mid_block"):
        return
    down, depth = f"down_blocks.{student_stages - 1}", _depths(teacher, "mid_block", kept)[0]
    down_depths = _depths(teacher, down, kept)
    if down_depths and down_depths[0] != depth:
        raise CondistillError(
            f"student.keep leaves {depth} transformer blocks in mid_block and {down_depths[0]} in the first attention "
            f"of {down}; a diffusers config has one number for both: keep as many in mid_block{_TRANSFORMERS} as in "
            f"{down}{_TRANSFORMERS}"
        )


def config_without_blocks(teacher: UNet2DConditionModel, kept: Layers) -> dict[str, Any]:
    """Return the student's config.

    Args:
        kept: from `kept_layers`.
    """
    config, stages = plain_config(teacher), len(teacher.down_blocks)
    student_stages = _student_stages(kept, stages)
    smaller = config | _transformer_config(teacher, kept, student_stages)
    smaller["layers_per_block"] = _one_or_all([len(kept[name]) for name in _blocks("down_blocks", student_stages)])
    if not kept.get("mid_block"):
        smaller["mid_block_type"] = None
    for key in (*_PER_STAGE, "down_block_types"):
        if isinstance(smaller.get(key), list | tuple):
            smaller[key] = tuple(smaller[key][:student_stages])
    smaller["up_block_types"] = tuple(smaller["up_block_types"][stages - student_stages :])
    return smaller


def _transformer_config(teacher: UNet2DConditionModel, kept: Layers, student_stages: int) -> dict[str, Any]:
    """Return the config's numbers of transformer blocks per attention.

    Blocks without attention ignore theirs, which stays as it is.
    """
    numbers, stages = teacher.config.transformer_layers_per_block, len(teacher.down_blocks)
    numbers = [numbers] * stages if isinstance(numbers, int) else list(numbers)
    reverse = teacher.config.reverse_transformer_layers_per_block or numbers[::-1]

    def depth(name: str, ignored: Any) -> Any:
        return _one_or_all(_depths(teacher, name, kept) or [ignored])

    down = [depth(f"down_blocks.{i}", numbers[i]) for i in range(student_stages)]
    up = [depth(f"up_blocks.{i}", reverse[i]) for i in range(stages - student_stages, stages)]
    if kept.get("mid_block") and not _depths(teacher, f"down_blocks.{student_stages - 1}"):
        down[-1] = depth("mid_block", down[-1])
    nested = any(not isinstance(depth, int) for depth in down)
    return {
        "transformer_layers_per_block": _one_or_all(down),
        "reverse_transformer_layers_per_block": tuple(up) if nested or up != down[::-1] else None,
    }


def _one_or_all(numbers: Sequence[Any]) -> Any:
    """Return the number that all are equal to, or else a tuple of all."""
    return numbers[0] if all(one == two for one, two in pairwise(numbers)) else tuple(numbers)


def _depths(teacher: UNet2DConditionModel, name: str, kept: Layers | None = None) -> list[int]:
    """Return the number of transformer blocks in each attention of a block, or in each that is kept."""
    attentions = getattr(teacher.get_submodule(name), "attentions", None) or ()
    depths = [len(part.transformer_blocks) for part in attentions if hasattr(part, "transformer_blocks")]
    if kept is None or not depths:
        return depths
    indices = range(len(depths)) if name == "mid_block" else kept[name]
    inside = kept.get(name + _TRANSFORMERS)
    return [depths[k] if inside is None else len(inside) for k in indices]


def _blocks(path: str, count: int) -> list[str]:
    return [f"{path}.{i}" for i in range(count)]


def layer_sources(teacher: UNet2DConditionModel, kept: Layers) -> dict[str, str]:
    """Return the teacher's layer that each layer of the student is a copy of, both as module paths.

    `source_of` finds the source of a module or weight inside these layers.

    Args:
        kept: from `kept_layers`.
    """
    stages = len(teacher.down_blocks)
    student_stages = _student_stages(kept, stages)
    blocks = [(f"down_blocks.{i}", f"down_blocks.{i}") for i in range(student_stages)]
    blocks += [(f"up_blocks.{i}", f"up_blocks.{i + stages - student_stages}") for i in range(student_stages)]
    blocks += [("mid_block", "mid_block")] if kept.get("mid_block") else []
    sources = dict(blocks)
    for block, source in blocks:
        for part in ("resnets", "attentions"):
            count = len(getattr(teacher.get_submodule(source), part, None) or ())
            layers = range(count) if source == "mid_block" else kept[source][:count]
            for k, index in enumerate(layers):
                sources[f"{block}.{part}.{k}"] = f"{source}.{part}.{index}"
                for m, inside in enumerate(kept.get(source + _TRANSFORMERS, ()) if part == "attentions" else ()):
                    sources[f"{block}.{part}.{k}{_TRANSFORMERS}.{m}"] = (
                        f"{source}.{part}.{index}{_TRANSFORMERS}.{inside}"
                    )
    return sources


def source_of(name: str, sources: Mapping[str, str]) -> str:
    """Return the path of the teacher's module or weight that the student's module or weight `name` is a copy of.

    Args:
        sources: from `layer_sources`.
    """
    layer = name
    while layer and layer not in sources:
        layer = layer.rpartition(".")[0]
    return sources.get(layer, "") + name.removeprefix(layer)


def weight_sources(
    teacher: UNet2DConditionModel, student: UNet2DConditionModel, kept: Layers
) -> dict[str, WeightSource]:
    """Return the part of the teacher that each weight of a student with the kept layers is a copy of.

    Args:
        teacher: with the weights that choose the inputs of the first up block; see `remove_blocks`.
        student: with the kept layers, on any device.
        kept: from `kept_layers`.
    """
    sources = layer_sources(teacher, kept)
    selections = _first_up_block_inputs(teacher, sources, len(student.up_blocks))
    return {name: WeightSource(source_of(name, sources), selections.get(name, ())) for name in student.state_dict()}


def remove_blocks(teacher: UNet2DConditionModel, kept: Layers) -> UNet2DConditionModel:
    """Return a denoiser with copies of the kept layers, float32, on the teacher's device.

    Where the innermost stages are removed and the next stage was narrower, the first up block of the student has fewer
    input channels than its source in the teacher. It keeps those with the largest input weights.

    Args:
        teacher: on any device; on the meta device the student has shapes only.
        kept: from `kept_layers`.

    Raises:
        CondistillError: a layer does not fit; the message names the student's layer and the teacher's.
    """
    student = build_on_meta(type(teacher), config_without_blocks(teacher, kept))
    teacher_weights, sources = teacher.state_dict(), weight_sources(teacher, student, kept)
    weights: dict[str, Tensor] = {}
    for name, parameter in student.state_dict().items():
        source = sources[name].name
        weights[name] = take(teacher_weights[source], sources[name].selection)
        if weights[name].shape != parameter.shape:
            raise CondistillError(
                f"the student's {name} has shape {tuple(parameter.shape)}, and its source, the teacher's {source}, has "
                f"{tuple(teacher_weights[source].shape)}; choose another preset, or random weights"
            )
    return inherit(student, weights)


def _first_up_block_inputs(
    teacher: UNet2DConditionModel, sources: Mapping[str, str], student_stages: int
) -> dict[str, Selection]:
    """Return the input channels that the student's first up block keeps, where it gets fewer than its source."""
    name, channels = "up_blocks.0.resnets.0", teacher.config.block_out_channels
    source = sources[name]
    if student_stages == len(channels) or not source.endswith(".0"):
        return {}
    wide, narrow = channels[student_stages], channels[student_stages - 1]
    if narrow >= wide:
        return {}
    resnet = teacher.get_submodule(source)
    norms = weight_norms(*(layer.weight.transpose(0, 1) for layer in (resnet.conv1, resnet.conv_shortcut)))
    hidden = keep_channels(norms[:wide], narrow, blocks=resnet.norm1.num_groups)
    skip = torch.arange(wide, resnet.in_channels)
    inputs = torch.cat([hidden, skip])
    return {
        f"{name}.norm1.weight": (inputs,),
        f"{name}.norm1.bias": (inputs,),
        f"{name}.conv1.weight": (None, inputs),
        f"{name}.conv_shortcut.weight": (None, inputs),
    }
