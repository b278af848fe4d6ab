"""Students with fewer layers of a U-Net: whichever are listed, or those that BK-SDM and KOALA keep.

BK-SDM is Kim et al., arXiv 2305.15798, section 3; KOALA is Lee et al., NeurIPS 2024, arXiv 2312.04005, section 3.
What can be kept is what diffusers' config can describe.
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
from condistill.students.width import importance_of, inherit, keep_channels, take
from condistill.utils.meta import build_on_meta, plain_config

Layers = dict[str, tuple[int, ...]]
"""Indices by list of layers: of `down_blocks.i` and `up_blocks.i` the resnets, each with its attention; of `mid_block`
itself alone; of `<block>.transformer_blocks` those inside each attention of the block."""

_TRANSFORMERS = ".transformer_blocks"
_PER_STAGE = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "only_cross_attention")
_KOALA: dict[str, int] = {"koala-1b": 6, "koala-700m": 5}
"""Transformer blocks that are left of the 10 in each attention of the innermost stage of Stable Diffusion XL."""


def layer_lists(teacher: UNet2DConditionModel) -> Layers:
    """Every list of layers that can be shortened, whole.

    Where the attentions of a block differ in depth, `transformer_blocks` are those that all of them have.
    """
    names = [name for way in ("down_blocks", "up_blocks") for name in _blocks(way, len(teacher.down_blocks))]
    lists: Layers = {}
    for name in (*names, *(["mid_block"] if teacher.mid_block is not None else [])):
        lists[name] = (0,) if name == "mid_block" else tuple(range(len(teacher.get_submodule(name).resnets)))
        if depths := _depths(teacher, name):
            lists[name + _TRANSFORMERS] = tuple(range(min(depths)))
    return lists


def preset_layers(teacher: UNet2DConditionModel, preset: BlockPreset) -> Layers:
    """The layers that a preset keeps: one of every stage, of up blocks the first and the last.

    Raises:
        CondistillError: there is no second layer or no second stage to remove, or it is no teacher for KOALA.
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
    """What is kept of every list, once it is known to be a U-Net; lists that are not named stay whole.

    Raises:
        CondistillError: there is no such list or layer, or diffusers' config cannot describe what is left.
    """
    lists, stages = layer_lists(teacher), len(teacher.down_blocks)
    for name, indices in keep.items():
        if name not in lists:
            raise CondistillError(f"student.keep names {name!r}, and there is no such list{nearest(name, lists)}")
        if list(indices) != sorted(set(indices)) or not set(indices) <= set(lists[name]):
            held = f"layers 0 to {len(lists[name]) - 1}" if len(lists[name]) > 1 else "layer 0 alone"
            raise CondistillError(
                f"student.keep.{name} is {list(indices)}; it has {held}: give those to keep, each once, ascending"
            )
    # transformer blocks are whole unless named, even where attentions differ in depth
    kept = {name: held for name, held in lists.items() if not name.endswith(_TRANSFORMERS)}
    kept |= {name: tuple(indices) for name, indices in keep.items()}
    for name in keep:
        if not kept[name.removesuffix(_TRANSFORMERS)] and keep[name]:
            raise CondistillError(f"student.keep.{name} lists layers of a block of which none is kept; leave it out")
    left = _stages_left(kept, stages)
    if left < stages and kept.get("mid_block"):
        raise CondistillError(
            f"student.keep leaves the mid block without its stage, down_blocks.{stages - 1}; add mid_block: []"
        )
    for stage in range(left):
        _check_stage(teacher, kept, stage, left)
    if kept.get("mid_block") and _depths(teacher, "mid_block"):
        down, middle = f"down_blocks.{left - 1}", _depths(teacher, "mid_block", kept)[0]
        depths = _depths(teacher, down, kept)
        if depths and depths[0] != middle:
            raise CondistillError(
                f"student.keep leaves {middle} transformer blocks in mid_block and {depths[0]} in the first attention "
                f"of {down}; diffusers' config has one number for both: keep as many in "
                f"mid_block{_TRANSFORMERS} as in {down}{_TRANSFORMERS}"
            )
    return kept


def _stages_left(kept: Layers, stages: int) -> int:
    """Stages of the student: the innermost of which nothing is kept are removed."""
    left = stages
    while left and not kept[f"down_blocks.{left - 1}"] and not kept[f"up_blocks.{stages - left}"]:
        left -= 1
    if not left:
        raise CondistillError("student.keep leaves no stage; keep layers of down_blocks.0 at least")
    return left


def _check_stage(teacher: UNet2DConditionModel, kept: Layers, stage: int, left: int) -> None:
    """A stage must have what its skips and the widths around it need.

    Args:
        left: stages of the student.
    """
    channels, last = teacher.config.block_out_channels, len(teacher.down_blocks) - 1
    down, up = f"down_blocks.{stage}", f"up_blocks.{last - stage}"
    if not kept[down] or not kept[up]:
        raise CondistillError(
            f"student.keep leaves {down if not kept[down] else up} without layers; only whole stages can be removed, "
            f"from the innermost on: keep none of {down}, {up} and mid_block, and of the stages inside, or some of each"
        )
    if len(kept[up]) != len(kept[down]) + 1:
        raise CondistillError(
            f"student.keep leaves {len(kept[down])} of {down} and {len(kept[up])} of {up}, which reads one skip of "
            f"each layer there and one of the stage above: keep {len(kept[down]) + 1} layers of {up}"
        )
    end = len(teacher.get_submodule(up).resnets) - 1
    if kept[up][-1] != end:
        raise CondistillError(
            f"student.keep.{up} is {list(kept[up])}; add its last layer, {end}, the only one to read the stage above"
        )
    for name, before in ((down, stage - 1), (up, stage + 1)):
        if 0 <= before < left and channels[before] != channels[stage] and 0 not in kept[name]:
            raise CondistillError(
                f"student.keep.{name} is {list(kept[name])}; add layer 0, the only one to take the "
                f"{channels[before]} channels that come in to {channels[stage]}"
            )


def config_without_blocks(teacher: UNet2DConditionModel, kept: Layers) -> dict[str, Any]:
    """The student's config.

    Args:
        kept: of every list, from `kept_layers`.
    """
    config, stages = plain_config(teacher), len(teacher.down_blocks)
    left = _stages_left(kept, stages)
    smaller = config | _transformer_config(teacher, kept, left)
    smaller["layers_per_block"] = _shared([len(kept[name]) for name in _blocks("down_blocks", left)])
    if not kept.get("mid_block"):
        smaller["mid_block_type"] = None
    for key in (*_PER_STAGE, "down_block_types"):
        if isinstance(smaller.get(key), list | tuple):
            smaller[key] = tuple(smaller[key][:left])
    smaller["up_block_types"] = tuple(smaller["up_block_types"][stages - left :])
    return smaller


def _transformer_config(teacher: UNet2DConditionModel, kept: Layers, left: int) -> dict[str, Any]:
    """How many transformer blocks are left in each attention; blocks without attention keep the number they ignore."""
    given, stages = teacher.config.transformer_layers_per_block, len(teacher.down_blocks)
    given = [given] * stages if isinstance(given, int) else list(given)
    reverse = teacher.config.reverse_transformer_layers_per_block or given[::-1]

    def depth(name: str, ignored: Any) -> Any:
        return _shared(_depths(teacher, name, kept) or [ignored])

    down = [depth(f"down_blocks.{i}", given[i]) for i in range(left)]
    up = [depth(f"up_blocks.{i}", reverse[i]) for i in range(stages - left, stages)]
    if kept.get("mid_block") and not _depths(teacher, f"down_blocks.{left - 1}"):
        down[-1] = depth("mid_block", down[-1])
    nested = any(not isinstance(depth, int) for depth in down)
    return {
        "transformer_layers_per_block": _shared(down),
        "reverse_transformer_layers_per_block": tuple(up) if nested or up != down[::-1] else None,
    }


def _shared(numbers: Sequence[Any]) -> Any:
    """The one number there is, or all of them."""
    return numbers[0] if all(one == two for one, two in pairwise(numbers)) else tuple(numbers)


def _depths(teacher: UNet2DConditionModel, name: str, kept: Layers | None = None) -> list[int]:
    """Transformer blocks in each attention of a block, or in those that are kept."""
    attentions = getattr(teacher.get_submodule(name), "attentions", None) or ()
    depths = [len(part.transformer_blocks) for part in attentions if hasattr(part, "transformer_blocks")]
    if kept is None or not depths:
        return depths
    indices = range(len(depths)) if name == "mid_block" else kept[name]
    inside = kept.get(name + _TRANSFORMERS)
    return [depths[k] if inside is None else len(inside) for k in indices]


def _blocks(way: str, count: int) -> list[str]:
    return [f"{way}.{i}" for i in range(count)]


def layer_sources(teacher: UNet2DConditionModel, kept: Layers) -> dict[str, str]:
    """Student layer to teacher layer, as module paths; `origin` finds what lies in them.

    Args:
        kept: of every list, from `kept_layers`.
    """
    stages = len(teacher.down_blocks)
    left = _stages_left(kept, stages)
    blocks = [(f"down_blocks.{i}", f"down_blocks.{i}") for i in range(left)]
    blocks += [(f"up_blocks.{i}", f"up_blocks.{i + stages - left}") for i in range(left)]
    blocks += [("mid_block", "mid_block")] if kept.get("mid_block") else []
    sources = dict(blocks)
    for ours, theirs in blocks:
        for part in ("resnets", "attentions"):
            count = len(getattr(teacher.get_submodule(theirs), part, None) or ())
            layers = range(count) if theirs == "mid_block" else kept[theirs][:count]
            for k, index in enumerate(layers):
                sources[f"{ours}.{part}.{k}"] = f"{theirs}.{part}.{index}"
                for m, inside in enumerate(kept.get(theirs + _TRANSFORMERS, ()) if part == "attentions" else ()):
                    sources[f"{ours}.{part}.{k}{_TRANSFORMERS}.{m}"] = (
                        f"{theirs}.{part}.{index}{_TRANSFORMERS}.{inside}"
                    )
    return sources


def origin(name: str, sources: Mapping[str, str]) -> str:
    """The teacher's module or weight, as a path, that the student's of this name is a copy of."""
    layer = name
    while layer and layer not in sources:
        layer = layer.rpartition(".")[0]
    return sources.get(layer, "") + name.removeprefix(layer)


def remove_blocks(teacher: UNet2DConditionModel, kept: Layers) -> UNet2DConditionModel:
    """A smaller denoiser with copies of the teacher's surviving layers, float32; on meta for a teacher on meta.

    Where the innermost stages are removed and the next was narrower, the first up block reads a narrower stream than
    its teacher did: it keeps the channels that it read most strongly.

    Args:
        kept: of every list, from `kept_layers`.

    Raises:
        CondistillError: a layer does not fit (both layers are named).
    """
    student = build_on_meta(type(teacher), config_without_blocks(teacher, kept))
    given, sources = teacher.state_dict(), layer_sources(teacher, kept)
    entrance = _entrance(teacher, sources, len(student.up_blocks))
    weights: dict[str, Tensor] = {}
    for name, parameter in student.state_dict().items():
        source = origin(name, sources)
        weights[name] = take(given[source], entrance.get(name, ()))
        if weights[name].shape != parameter.shape:
            raise CondistillError(
                f"the student's {name} has shape {tuple(parameter.shape)} and the teacher's {source}, from "
                f"which it comes, {tuple(given[source].shape)}; choose another preset, or random weights"
            )
    return inherit(student, weights)


def _entrance(
    teacher: UNet2DConditionModel, sources: Mapping[str, str], left: int
) -> dict[str, tuple[Tensor | None, ...]]:
    """Which inputs the student's innermost up block keeps, where the stream that enters it became narrower."""
    name, channels = "up_blocks.0.resnets.0", teacher.config.block_out_channels
    source = sources[name]
    if left == len(channels) or not source.endswith(".0") or channels[left - 1] >= channels[left]:
        return {}
    wide, narrow = channels[left], channels[left - 1]
    resnet = teacher.get_submodule(source)
    reads = importance_of(*(layer.weight.transpose(0, 1) for layer in (resnet.conv1, resnet.conv_shortcut)))
    hidden = keep_channels(reads[:wide], narrow, blocks=resnet.norm1.num_groups)
    skip = torch.arange(wide, resnet.in_channels)
    inputs = torch.cat([hidden, skip])
    return {
        f"{name}.norm1.weight": (inputs,),
        f"{name}.norm1.bias": (inputs,),
        f"{name}.conv1.weight": (None, inputs),
        f"{name}.conv_shortcut.weight": (None, inputs),
    }
