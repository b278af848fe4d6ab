"""From a teacher and what is to be smaller to a student, ready to be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from torch import Tensor, nn

from condistill.errors import CondistillError, nearest
from condistill.settings import BlockPreset, WidthPreset
from condistill.students.blocks import config_without_blocks, layer_sources, remove_blocks
from condistill.students.costs import build_on_meta, parameters, plain_config
from condistill.students.depth import (
    describe_layers,
    listed_layers,
    remove_layers,
    share_of_layers,
    shortened_config,
)
from condistill.students.features import FeatureKind, FeaturePair, check_pairs, feature_pairs, layer_pairs, make_maps
from condistill.students.width import narrow, narrowed_config, stage_widths

WIDTH_FRACTIONS: dict[WidthPreset, float] = {"c-base": 0.8, "c-small": 0.7, "c-tiny": 0.6, "c-micro": 0.5}
"""The paper's channel-reduced students: (256, 512, 1024, 1024) to (160, 320, 640, 640) for SD-1.4."""


@dataclass(frozen=True)
class Student:
    """A smaller denoiser of its teacher's class, and where the two are compared."""

    denoiser: ModelMixin
    pairs: tuple[FeaturePair, ...]
    kept: tuple[str, ...]
    """Which teacher layers each block, or list of layers, comes from, for the model card."""
    maps: nn.ModuleList
    """One per pair, from student to teacher channels; used in training only."""


@dataclass(frozen=True)
class _Plan:
    """What is to become of a teacher."""

    config: dict[str, Any]
    inherit: Callable[[], ModelMixin]
    """The student with the teacher's weights."""
    pairs: Callable[[ModelMixin], tuple[FeaturePair, ...]]
    describe: Callable[[ModelMixin], tuple[str, ...]]
    smaller: str
    """What else could be chosen, where the student is not smaller."""


def derive_student(
    teacher: ModelMixin,
    *,
    preset: str | None,
    width: float | tuple[int, ...] | None,
    keep: Mapping[str, Sequence[int]] | None = None,
    depth: float | None = None,
    weights: Literal["teacher", "random"] = "teacher",
    channel_importance: Mapping[str, Tensor] | None = None,  # noqa: ARG001 - of widths, which weigh by norm so far
    layer_scores: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    may_be_as_large: bool = False,
    features: FeatureKind = "stages",
) -> Student:
    """Remove layers, then narrow what is left. The teacher stays as it is; the student is float32.

    Args:
        teacher: on any device; on the meta device the student has shapes only.
        preset: of a U-Net: `b-*` removes blocks (BK-SDM, arXiv 2305.15798), `c-*` stands for a width.
        width: of a U-Net: a fraction of the teacher's channels, or the channels of every stage of the student.
        keep: the layers that are kept of each list of layers.
        depth: of a transformer: the share of the layers of every list that is kept.
        weights: `teacher` inherits surviving layers and slices channels; `random` starts anew.
        layer_scores: the influence of every layer, by which `depth` chooses; without them it spreads evenly.
        seed: of random weights and of the maps; the global generator is left alone.
        features: what of the two is compared.
        may_be_as_large: for a student that is cheaper in another way; else one that is not smaller is an error.

    Raises:
        CondistillError: the settings fit neither each other nor the teacher.
    """
    if weights not in ("teacher", "random"):
        raise CondistillError(f"weights must be 'teacher' or 'random', not {weights!r}")
    if isinstance(teacher, UNet2DConditionModel):
        plan = _unet_plan(teacher, preset, width, keep, depth, features=features, inherited=weights == "teacher")
    else:
        plan = _transformer_plan(teacher, preset, width, keep, depth, features=features, scores=layer_scores)
    skeleton = build_on_meta(type(teacher), plan.config)
    if parameters(skeleton) >= parameters(teacher) and not may_be_as_large:
        raise CondistillError(
            f"the student would have {parameters(skeleton):,} parameters and its teacher has {parameters(teacher):,}; "
            f"{plan.smaller}"
        )
    device = next(teacher.parameters()).device
    if weights == "teacher":
        denoiser = plan.inherit()
    elif device.type == "meta":
        denoiser = skeleton
    else:
        with _seeded(seed):
            denoiser = type(teacher).from_config(plan.config).to(device)
    pairs = plan.pairs(denoiser)
    channels = check_pairs(teacher, denoiser, pairs)
    with _seeded(seed):
        maps = make_maps([t for t, _ in channels], [s for _, s in channels], features=features).to(device)
    origin = "weights: inherited from the teacher" if weights == "teacher" else f"weights: random, seed {seed}"
    return Student(denoiser, pairs, (origin, *plan.describe(denoiser)), maps)


def _unet_plan(
    teacher: UNet2DConditionModel,
    preset: str | None,
    width: float | tuple[int, ...] | None,
    keep: Mapping[str, Sequence[int]] | None,
    depth: float | None,
    *,
    features: FeatureKind,
    inherited: bool,
) -> _Plan:
    if depth is not None:
        raise CondistillError("student.depth is for transformers; make a U-Net smaller by preset, keep or width")
    if keep is not None:
        raise CondistillError("student.keep is for transformers; make a U-Net smaller by preset or width")
    blocks, width = _read(preset, width)
    config = plain_config(teacher)
    if blocks:
        config = config_without_blocks(config, blocks)
    widths = None if width is None else stage_widths(config, width)
    if widths:
        config = narrowed_config(config, widths)

    def inherit() -> ModelMixin:
        denoiser = remove_blocks(teacher, blocks) if blocks else teacher
        return narrow(denoiser, widths) if widths else denoiser

    return _Plan(
        config,
        inherit,
        pairs=lambda student: feature_pairs(teacher, student, blocks_removed=blocks is not None, features=features),
        describe=lambda student: _describe(teacher, student, blocks, inherited=inherited),
        smaller="choose a preset or a smaller width",
    )


def _transformer_plan(
    teacher: ModelMixin,
    preset: str | None,
    width: float | tuple[int, ...] | None,
    keep: Mapping[str, Sequence[int]] | None,
    depth: float | None,
    *,
    features: FeatureKind,
    scores: Mapping[str, Sequence[float]] | None,
) -> _Plan:
    if preset is not None or width is not None:
        given = f"preset {preset!r}" if preset is not None else f"width {width}"
        raise CondistillError(
            f"student.{given}: presets and widths are for U-Nets, and the teacher is a {type(teacher).__name__}; "
            "set student.depth or student.keep"
        )
    if (keep is None) == (depth is None):
        raise CondistillError("give either a depth or the layers to keep of a transformer")
    if depth is not None:
        kept = share_of_layers(teacher, depth, scores)
        how = "spread evenly" if scores is None else "those that change their input most, the first and the last"
    else:
        kept, how = listed_layers(teacher, keep or {}), "as listed"
    return _Plan(
        shortened_config(teacher, kept),
        lambda: remove_layers(teacher, kept),
        pairs=lambda student: layer_pairs(teacher, student, kept, features=features),
        describe=lambda _: describe_layers(teacher, kept, how),
        smaller="keep fewer layers",
    )


def _read(
    preset: str | None, width: float | tuple[int, ...] | None
) -> tuple[BlockPreset | None, float | tuple[int, ...] | None]:
    """What to remove, and how wide to be."""
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
    teacher: UNet2DConditionModel, student: UNet2DConditionModel, blocks: BlockPreset | None, *, inherited: bool
) -> tuple[str, ...]:
    lines = []
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
    if shift and inherited and before[-1] > before[-2]:
        lines.append(
            f"up_blocks.0.resnets.0: reads the stream through {before[-2]} of the {before[-1]} channels "
            "that up_blocks.1.resnets.0 of the teacher read"
        )
    return tuple(lines)


def _resnets(denoiser: UNet2DConditionModel, path: str) -> Any:
    return denoiser.get_submodule(path).resnets
