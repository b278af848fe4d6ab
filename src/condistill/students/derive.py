"""From a teacher and a preset or widths to a student, ready to be trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from condistill.errors import CondistillError, nearest
from condistill.settings import BlockPreset, WidthPreset
from condistill.students.blocks import config_without_blocks, layer_sources, remove_blocks
from condistill.students.costs import build_on_meta, parameters, plain_config
from condistill.students.features import FeatureKind, FeaturePair, check_pairs, feature_pairs, make_maps
from condistill.students.width import narrow, narrowed_config, stage_widths

WIDTH_FRACTIONS: dict[WidthPreset, float] = {"c-base": 0.8, "c-small": 0.7, "c-tiny": 0.6, "c-micro": 0.5}
"""The paper's channel-reduced students: (256, 512, 1024, 1024) to (160, 320, 640, 640) for SD-1.4."""


@dataclass(frozen=True)
class Student:
    """A smaller denoiser of its teacher's class, and where the two are compared."""

    denoiser: UNet2DConditionModel
    pairs: tuple[FeaturePair, ...]
    kept: tuple[str, ...]
    """Which teacher layers each block comes from, for the model card."""
    maps: nn.ModuleList
    """One per pair, from student to teacher channels; used in training only."""


def derive_student(
    teacher: UNet2DConditionModel,
    *,
    preset: str | None,
    width: float | tuple[int, ...] | None,
    weights: Literal["teacher", "random"] = "teacher",
    seed: int = 0,
    may_be_as_large: bool = False,
    features: FeatureKind = "stages",
) -> Student:
    """Remove blocks, then narrow what is left. The teacher stays as it is; the student is float32.

    Args:
        teacher: on any device; on the meta device the student has shapes only.
        preset: `b-*` removes blocks (BK-SDM, arXiv 2305.15798), `c-*` stands for a width.
        width: a fraction of the teacher's channels, or the channels of every stage of the student.
        weights: `teacher` inherits surviving layers and slices channels; `random` starts anew.
        seed: of random weights and of the maps; the global generator is left alone.
        features: what of the two is compared.
        may_be_as_large: for a student that is cheaper in another way; else one that is not smaller is an error.

    Raises:
        CondistillError: the settings fit neither each other nor the teacher.
    """
    blocks, width = _read(preset, width, weights)
    config = plain_config(teacher)
    if blocks:
        config = config_without_blocks(config, blocks)
    widths = None if width is None else stage_widths(config, width)
    if widths:
        config = narrowed_config(config, widths)
    skeleton = build_on_meta(type(teacher), config)
    if parameters(skeleton) >= parameters(teacher) and not may_be_as_large:
        raise CondistillError(
            f"the student would have {parameters(skeleton):,} parameters and its teacher has {parameters(teacher):,}; "
            "choose a preset or a smaller width"
        )
    device = next(teacher.parameters()).device
    if weights == "teacher":
        denoiser = remove_blocks(teacher, blocks) if blocks else teacher
        denoiser = narrow(denoiser, widths) if widths else denoiser
    elif device.type == "meta":
        denoiser = skeleton
    else:
        with _seeded(seed):
            denoiser = type(teacher).from_config(config).to(device)
    pairs = feature_pairs(teacher, denoiser, blocks_removed=blocks is not None, features=features)
    channels = check_pairs(teacher, denoiser, pairs)
    with _seeded(seed):
        maps = make_maps([t for t, _ in channels], [s for _, s in channels], features=features).to(device)
    return Student(denoiser, pairs, _describe(teacher, denoiser, blocks, weights, seed), maps)


def _read(
    preset: str | None, width: float | tuple[int, ...] | None, weights: str
) -> tuple[BlockPreset | None, float | tuple[int, ...] | None]:
    """What to remove, and how wide to be."""
    if weights not in ("teacher", "random"):
        raise CondistillError(f"weights must be 'teacher' or 'random', not {weights!r}")
    if preset in WIDTH_FRACTIONS:
        if width is not None:
            raise CondistillError(f"preset {preset!r} sets the width already; leave out one of the two")
        return None, WIDTH_FRACTIONS[preset]
    names = get_args(BlockPreset)
    if preset is not None and preset not in names:
        raise CondistillError(f"{preset!r} is not a preset{nearest(preset, (*names, *WIDTH_FRACTIONS))}")
    if preset is None and width is None:
        raise CondistillError("give a preset, a width or both; without either the student equals its teacher")
    return cast("BlockPreset | None", preset), width


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU from `seed`; afterwards its generator goes on as if nothing had happened."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        yield


def _describe(
    teacher: UNet2DConditionModel, student: UNet2DConditionModel, blocks: BlockPreset | None, weights: str, seed: int
) -> tuple[str, ...]:
    lines = ["weights: inherited from the teacher" if weights == "teacher" else f"weights: random, seed {seed}"]
    sources = layer_sources(teacher, student) if blocks else {}
    shift = len(teacher.up_blocks) - len(student.up_blocks)
    before, after = list(teacher.config.block_out_channels), list(student.config.block_out_channels)
    places = [(f"down_blocks.{i}", f"down_blocks.{i}", i) for i in range(len(after))]
    if student.mid_block is not None:
        places.append(("mid_block", "mid_block", len(after) - 1))
    places += [(f"up_blocks.{i}", f"up_blocks.{i + shift}", len(after) - 1 - i) for i in range(len(after))]
    for place, origin, stage in places:
        count = len(_resnets(teacher, origin))
        resnets = [f"{place}.resnets.{k}" for k in range(len(_resnets(student, place)))]
        layers = [int(sources.get(path, path).rpartition(".")[2]) for path in resnets]
        noun = "layer" if len(layers) == 1 else "layers"
        which = "all layers" if len(layers) == count else f"{noun} {' and '.join(map(str, layers))} of {count}"
        width = (
            f"{before[stage]} channels"
            if before[stage] == after[stage]
            else f"{before[stage]} to {after[stage]} channels"
        )
        lines.append(f"{place}: from {origin}, {which}, {width}")
    if teacher.mid_block is not None and student.mid_block is None:
        lines.append("mid_block: removed")
    if shift:
        lines.append(f"stage {len(after)} (down_blocks.{len(after)} and up_blocks.0 of the teacher): removed")
    if shift and weights == "teacher" and before[-1] > before[-2]:
        lines.append(
            f"up_blocks.0.resnets.0: reads the stream through {before[-2]} of the {before[-1]} channels "
            "that up_blocks.1.resnets.0 of the teacher read"
        )
    return tuple(lines)


def _resnets(denoiser: UNet2DConditionModel, path: str) -> Any:
    return denoiser.get_submodule(path).resnets
