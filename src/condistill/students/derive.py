"""From a teacher and what is to be smaller to a student, ready to be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from torch import Tensor, nn

from condistill.config.sections import BlockPreset, StudentSettings, WidthPreset
from condistill.errors import CondistillError, nearest
from condistill.students.blocks import (
    Layers,
    config_without_blocks,
    kept_layers,
    layer_lists,
    layer_sources,
    origin,
    preset_layers,
    remove_blocks,
)
from condistill.students.depth import (
    describe_layers,
    listed_layers,
    remove_layers,
    share_of_layers,
    shortened_config,
)
from condistill.students.features import FeatureKind, FeaturePair, check_pairs, feature_pairs, layer_pairs, make_maps
from condistill.students.width import narrow, narrowed_config, stage_widths
from condistill.teachers.registry import family_of
from condistill.utils.meta import build_on_meta, parameters, plain_config

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
    channel_importance: Mapping[str, Tensor] | None = None,
    layer_scores: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
    may_be_as_large: bool = False,
    features: FeatureKind = "stages",
) -> Student:
    """Remove layers, then narrow what is left. The teacher stays as it is; the student is float32.

    Args:
        teacher: on any device; on the meta device the student has shapes only.
        preset: of a U-Net: `b-*` (BK-SDM, arXiv 2305.15798) and `koala-*` (arXiv 2312.04005) say which layers are
            kept, `c-*` stands for a width.
        width: of a U-Net: a fraction of the teacher's channels, or the channels of every stage of the student.
        keep: the layers that are kept of each list of layers.
        depth: of a transformer: the share of the layers of every list that is kept.
        weights: `teacher` inherits surviving layers and slices channels; `random` starts anew.
        channel_importance: by what a width's channels are kept, `[C]` by layer; without it by the norm of its weights.
        layer_scores: the influence of every layer, by which `depth` chooses; without them it spreads evenly.
        seed: of random weights and of the maps; the global generator is left alone.
        features: what of the two is compared.
        may_be_as_large: for a student that is cheaper in another way; else one that is not smaller is an error.

    Raises:
        CondistillError: the settings fit neither each other nor the teacher.
    """
    if weights not in ("teacher", "random"):
        raise CondistillError(f"weights must be 'teacher' or 'random', not {weights!r}")
    plan = _plan(
        teacher,
        preset,
        width,
        keep,
        depth,
        features=features,
        inherited=weights == "teacher",
        channel_importance=channel_importance,
        layer_scores=layer_scores,
    )
    skeleton = build_on_meta(type(teacher), plan.config)
    if not may_be_as_large:
        _check_smaller(skeleton, teacher, plan)
    device = next(teacher.parameters()).device
    if weights == "teacher":
        denoiser = plan.inherit()
    else:
        denoiser = skeleton if device.type == "meta" else _random(type(teacher), plan.config, seed).to(device)
    pairs = plan.pairs(denoiser)
    channels = check_pairs(teacher, denoiser, pairs)
    with _seeded(seed):
        maps = make_maps([t for t, _ in channels], [s for _, s in channels], features=features).to(device)
    origin = "weights: inherited from the teacher" if weights == "teacher" else f"weights: random, seed {seed}"
    return Student(denoiser, pairs, (origin, *plan.describe(denoiser)), maps)


def student_of(teacher: ModelMixin, settings: StudentSettings, **beside: Any) -> Student:
    """The student that a recipe's settings say; `beside` are arguments of `derive_student` that no recipe knows.

    Raises:
        CondistillError: see `derive_student`.
    """
    return derive_student(
        teacher,
        preset=settings.preset,
        width=settings.width,
        keep=settings.keep,
        depth=settings.depth,
        weights=settings.weights,
        **beside,
    )


def _check_smaller(student: ModelMixin, teacher: ModelMixin, plan: _Plan) -> None:
    if parameters(student) >= parameters(teacher):
        raise CondistillError(
            f"the student would have {parameters(student):,} parameters and its teacher has {parameters(teacher):,}; "
            f"{plan.smaller}"
        )


def student_shapes(teacher: ModelMixin, settings: StudentSettings) -> ModelMixin:
    """The student of these settings on the meta device, whether or not the teacher's weights can be cut so.

    Raises:
        CondistillError: the settings fit neither each other nor the teacher.
    """
    plan = _plan(teacher, settings.preset, settings.width, settings.keep, settings.depth)
    return build_on_meta(type(teacher), plan.config)


def _plan(
    teacher: ModelMixin,
    preset: str | None,
    width: float | tuple[int, ...] | None,
    keep: Mapping[str, Sequence[int]] | None,
    depth: float | None,
    *,
    features: FeatureKind = "stages",
    inherited: bool = True,
    channel_importance: Mapping[str, Tensor] | None = None,
    layer_scores: Mapping[str, Sequence[float]] | None = None,
) -> _Plan:
    if not family_of(teacher).can_cut_width:
        return _transformer_plan(teacher, preset, width, keep, depth, features=features, scores=layer_scores)
    if depth is not None:
        raise CondistillError("student.depth is for transformers; make a U-Net smaller by preset, keep or width")
    kept, width = _read(teacher, preset, width, keep)
    return _unet_plan(teacher, kept, width, channel_importance, features=features, inherited=inherited)


def _unet_plan(
    teacher: UNet2DConditionModel,
    kept: Layers | None,
    width: float | tuple[int, ...] | None,
    importance: Mapping[str, Tensor] | None,
    *,
    features: FeatureKind,
    inherited: bool,
) -> _Plan:
    config = plain_config(teacher) if kept is None else config_without_blocks(teacher, kept)
    sources = {} if kept is None else layer_sources(teacher, kept)
    widths = None if width is None else stage_widths(config, width)
    if widths:
        config = narrowed_config(config, widths)

    def inherit() -> ModelMixin:
        denoiser = teacher if kept is None else remove_blocks(teacher, kept)
        return narrow(denoiser, widths, _renamed(importance, denoiser, sources)) if widths else denoiser

    return _Plan(
        config,
        inherit,
        pairs=lambda student: feature_pairs(teacher, student, sources=sources, features=features),
        describe=lambda student: _describe(teacher, student, kept, inherited=inherited),
        smaller="choose a preset, a smaller width or fewer layers",
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
    teacher: UNet2DConditionModel,
    preset: str | None,
    width: float | tuple[int, ...] | None,
    keep: Mapping[str, Sequence[int]] | None,
) -> tuple[Layers | None, float | tuple[int, ...] | None]:
    """Which layers are kept, if not all, and how wide to be."""
    if preset in WIDTH_FRACTIONS:
        if width is not None:
            raise CondistillError(f"preset {preset!r} sets the width already; leave out one of the two")
        width = WIDTH_FRACTIONS[preset]
        preset = None
    names = get_args(BlockPreset)
    if preset is not None and preset not in names:
        raise CondistillError(f"{preset!r} is not a preset{nearest(preset, (*names, *WIDTH_FRACTIONS))}")
    if preset is not None and keep is not None:
        raise CondistillError(f"preset {preset!r} says which layers are kept already; leave out one of the two")
    if preset is None and keep is None and width is None:
        raise CondistillError(
            "give a preset, a width or both, or the layers to keep; without any the student equals its teacher"
        )
    if preset is not None:
        keep = preset_layers(teacher, cast("BlockPreset", preset))
    return None if keep is None else kept_layers(teacher, keep), width


def _renamed(
    importance: Mapping[str, Tensor] | None, denoiser: UNet2DConditionModel, sources: Mapping[str, str]
) -> dict[str, Tensor] | None:
    """The teacher's scores by the names that its layers have where some were removed."""
    if importance is None:
        return None
    origins = {name: origin(name, sources) for name, _ in denoiser.named_modules()}
    return {name: importance[source] for name, source in origins.items() if source in importance}


def _random(kind: Any, config: dict[str, Any], seed: int) -> Any:
    with _seeded(seed):
        return kind.from_config(config)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU from `seed`; afterwards its generator goes on as if nothing had happened."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        yield


def _describe(
    teacher: UNet2DConditionModel, student: ModelMixin, kept: Layers | None, *, inherited: bool
) -> tuple[str, ...]:
    lines = []
    whole = layer_lists(teacher)
    kept = whole | (kept or {})
    before, after = list(teacher.config.block_out_channels), list(student.config.block_out_channels)
    left = len(after)
    shift = len(before) - left
    places = [(f"down_blocks.{i}", f"down_blocks.{i}", i) for i in range(left)]
    if student.mid_block is not None:
        places.append(("mid_block", "mid_block", left - 1))
    places += [(f"up_blocks.{i}", f"up_blocks.{i + shift}", left - 1 - i) for i in range(left)]
    for place, source, stage in places:
        parts = [f"{place}: from {source}, {_which(kept[source], whole[source], 'layer')}"]
        inside = f"{source}.transformer_blocks"
        if kept.get(inside) != whole.get(inside):
            parts.append(_which(kept[inside], whole[inside], "transformer block") + " in each attention")
        same = before[stage] == after[stage]
        parts.append(f"{before[stage]} channels" if same else f"{before[stage]} to {after[stage]} channels")
        lines.append(", ".join(parts))
    if teacher.mid_block is not None and student.mid_block is None:
        lines.append("mid_block: removed")
    for stage in range(left, len(before)):
        up = len(before) - 1 - stage
        lines.append(f"stage {stage} (down_blocks.{stage} and up_blocks.{up} of the teacher): removed")
    if shift and inherited and before[left] > before[left - 1] and kept[f"up_blocks.{shift}"][0] == 0:
        lines.append(
            f"up_blocks.0.resnets.0: reads the stream through {before[left - 1]} of the {before[left]} channels "
            f"that up_blocks.{shift}.resnets.0 of the teacher read"
        )
    return tuple(lines)


def _which(kept: Sequence[int], whole: Sequence[int], noun: str) -> str:
    """`all layers`, or which of them."""
    if len(kept) == len(whole):
        return f"all {noun}s"
    *most, last = map(str, kept) if kept else ["none"]
    listed = f"{kept[0]} to" if len(kept) > 2 and kept[-1] - kept[0] < len(kept) else ", ".join(most) + " and"
    return f"{noun}s {listed} {last} of {len(whole)}" if most else f"{noun} {last} of {len(whole)}"
