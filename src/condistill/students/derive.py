"""Derive a student from a teacher and the student's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline, ModelMixin, UNet2DConditionModel
from torch import Tensor, nn

from condistill.config.distill import FeatureKind
from condistill.config.sections import BlockPreset, StudentSettings, WidthPreset
from condistill.errors import CondistillError
from condistill.students.blocks import (
    Layers,
    config_without_blocks,
    kept_layers,
    layer_lists,
    layer_sources,
    preset_layers,
    remove_blocks,
    source_of,
)
from condistill.students.blocks import weight_sources as block_sources
from condistill.students.choice import StudentChoice, denoiser_of, student_settings
from condistill.students.depth import (
    describe_layers,
    listed_layers,
    remove_layers,
    share_of_layers,
    shortened_config,
)
from condistill.students.depth import weight_sources as depth_sources
from condistill.students.features import FeaturePair, check_pairs, feature_pairs, layer_pairs, make_maps
from condistill.students.layer_map import LayerMap, chained
from condistill.students.scores.record import Scores
from condistill.students.width import narrow_along, narrowed_config, stage_widths
from condistill.teachers.family import Family
from condistill.teachers.registry import family_of
from condistill.utils.meta import build_on_meta, parameters, plain_config

WIDTH_FRACTIONS: dict[WidthPreset, float] = {"c-base": 0.8, "c-small": 0.7, "c-tiny": 0.6, "c-micro": 0.5}
"""The paper's channel-reduced students: (256, 512, 1024, 1024) to (160, 320, 640, 640) for SD-1.4."""


@dataclass(frozen=True)
class Student:
    """A smaller denoiser of its teacher's class, and the layers in which the two are compared."""

    denoiser: ModelMixin
    pairs: tuple[FeaturePair, ...]
    kept: tuple[str, ...]
    """Lines for the model card: which teacher layers each block, or list of layers, comes from."""
    maps: nn.ModuleList
    """One per pair, from student to teacher channels; used in training only."""
    layers: LayerMap | None = None
    """The part of the teacher that each weight was a copy of when it was derived; None where weights are random."""


@dataclass(frozen=True)
class _Plan:
    """How one kind of teacher becomes a student."""

    config: dict[str, Any]
    inherit: Callable[[], tuple[ModelMixin, LayerMap]]
    """Returns the student with the teacher's weights, and where each is from."""
    pairs: Callable[[ModelMixin], tuple[FeaturePair, ...]]
    describe: Callable[[ModelMixin], tuple[str, ...]]
    advice: str
    """What to set where the student is not smaller than its teacher."""


def derive_student(
    teacher: Family | DiffusionPipeline | ModelMixin,
    settings: StudentChoice,
    *,
    scores: Scores | None = None,
    seed: int = 0,
    features: FeatureKind = "stages",
    may_be_as_large: bool = False,
) -> Student:
    """Return a student of a teacher: layers are removed first, then channels.

    The teacher does not change. The student is float32, on the teacher's device::

        student = derive_student(load_teacher("./my-pipeline"), "b-base").denoiser

    Args:
        teacher: a teacher, a pipeline of diffusers, or a denoiser, on any device; on the meta device the student has
            shapes only.
        settings: the name of a preset, a share of the channels (of a U-Net) or of the layers (of a transformer), a dict
            with the keys of `student` in a recipe, or `StudentSettings`. Without a target.
        scores: what a width and a depth keep. `settings.importance` other than "weight_norm" needs them, except on the
            meta device.
        seed: of random weights and of the maps. The global random state does not change.
        features: the kind of features that are compared.
        may_be_as_large: whether the student may have as many parameters as its teacher, because it is cheaper in
            another way.

    Raises:
        CondistillError: the settings do not fit the teacher.
    """
    teacher = denoiser_of(teacher)
    device = next(teacher.parameters()).device
    settings = student_settings(settings, can_cut_width=family_of(teacher).can_cut_width)
    scores = scores or Scores()
    if settings.importance != "weight_norm" and scores.channel_importance is None and device.type != "meta":
        raise CondistillError(
            f"student.importance {settings.importance!r} needs channel scores; give them as scores, or set importance "
            "to weight_norm"
        )
    plan = _plan(teacher, settings, scores, features)
    shapes = build_on_meta(type(teacher), plan.config)
    if not may_be_as_large:
        _check_smaller(shapes, teacher, plan.advice)
    layers: LayerMap | None = None
    if settings.weights == "teacher":
        denoiser, layers = plan.inherit()
        weights = "inherited from the teacher"
    else:
        denoiser = shapes if device.type == "meta" else _random(type(teacher), plan.config, seed).to(device)
        weights = f"random, seed {seed}"
    pairs = plan.pairs(denoiser)
    channels = check_pairs(teacher, denoiser, pairs)
    with _seeded(seed):
        maps = make_maps([t for t, _ in channels], [s for _, s in channels], features=features).to(device)
    return Student(denoiser, pairs, (f"weights: {weights}", *plan.describe(denoiser)), maps, layers)


def student_shapes(teacher: ModelMixin, settings: StudentSettings) -> ModelMixin:
    """Return the student's denoiser on the meta device, even where the teacher's weights cannot be cut to its shapes.

    Raises:
        CondistillError: the settings do not fit the teacher.
    """
    return build_on_meta(type(teacher), _plan(teacher, settings, Scores(), "stages").config)


def _check_smaller(student: ModelMixin, teacher: ModelMixin, advice: str) -> None:
    if parameters(student) >= parameters(teacher):
        raise CondistillError(
            f"the student would have {parameters(student):,} parameters and its teacher has {parameters(teacher):,}; "
            f"{advice}"
        )


def _plan(teacher: ModelMixin, settings: StudentSettings, scores: Scores, features: FeatureKind) -> _Plan:
    if settings.target is not None:
        raise CondistillError("the settings have a target; replace it by a width or a depth first, with meet_target")
    if family_of(teacher).can_cut_width:
        return _unet_plan(teacher, settings, scores, features)
    return _transformer_plan(teacher, settings, scores, features)


def _unet_plan(
    teacher: UNet2DConditionModel, settings: StudentSettings, scores: Scores, features: FeatureKind
) -> _Plan:
    if settings.depth is not None:
        raise CondistillError("student.depth is for transformers; make a U-Net smaller by preset, keep or width")
    kept, width = _unet_layers(teacher, settings), _unet_width(settings)
    config = plain_config(teacher) if kept is None else config_without_blocks(teacher, kept)
    sources = {} if kept is None else layer_sources(teacher, kept)
    widths = None if width is None else stage_widths(config, width)
    if widths:
        config = narrowed_config(config, widths)

    def inherit() -> tuple[ModelMixin, LayerMap]:
        denoiser = teacher if kept is None else remove_blocks(teacher, kept)
        layers = block_sources(teacher, denoiser, layer_lists(teacher) if kept is None else kept)
        if not widths:
            return denoiser, layers
        importance = _renamed(scores.channel_importance, denoiser, sources)
        student, channels = narrow_along(denoiser, widths, importance)
        return student, chained(layers, channels)

    return _Plan(
        config,
        inherit,
        pairs=lambda student: feature_pairs(teacher, student, sources=sources, features=features),
        describe=lambda student: _describe(teacher, student, kept, inherited=settings.weights == "teacher"),
        advice="choose a preset, a smaller width or fewer layers",
    )


def _unet_layers(teacher: UNet2DConditionModel, settings: StudentSettings) -> Layers | None:
    """Return the layers that are kept, or None for all."""
    if settings.keep is not None:
        return kept_layers(teacher, settings.keep)
    if settings.preset is None or settings.preset in WIDTH_FRACTIONS:
        return None
    return kept_layers(teacher, preset_layers(teacher, cast("BlockPreset", settings.preset)))


def _unet_width(settings: StudentSettings) -> float | tuple[int, ...] | None:
    """Return the fraction or the channels of every stage, or None where the width does not change."""
    if settings.preset in WIDTH_FRACTIONS:
        return WIDTH_FRACTIONS[settings.preset]
    return settings.width


def _transformer_plan(teacher: ModelMixin, settings: StudentSettings, scores: Scores, features: FeatureKind) -> _Plan:
    preset, width = settings.preset, settings.width
    if preset is not None or width is not None:
        setting = f"preset {preset!r}" if preset is not None else f"width {width}"
        raise CondistillError(
            f"student.{setting}: presets and widths are for U-Nets, and the teacher is a {type(teacher).__name__}; "
            "set student.depth or student.keep"
        )
    if settings.depth is not None:
        kept = share_of_layers(teacher, settings.depth, scores.layer_scores)
        how = "spread evenly"
        if scores.layer_scores is not None:
            how = "the first, the last and those with the highest block influence"
    else:
        kept, how = listed_layers(teacher, settings.keep or {}), "as listed"

    def inherit() -> tuple[ModelMixin, LayerMap]:
        student = remove_layers(teacher, kept)
        return student, depth_sources(student, kept)

    return _Plan(
        shortened_config(teacher, kept),
        inherit,
        pairs=lambda student: layer_pairs(teacher, student, kept, features=features),
        describe=lambda _: describe_layers(teacher, kept, how),
        advice="keep fewer layers",
    )


def _renamed(
    importance: Mapping[str, Tensor] | None, denoiser: UNet2DConditionModel, sources: Mapping[str, str]
) -> dict[str, Tensor] | None:
    """Return the teacher's channel scores by the names of the layers that are left."""
    if importance is None:
        return None
    names = {name: source_of(name, sources) for name, _ in denoiser.named_modules()}
    return {name: importance[source] for name, source in names.items() if source in importance}


def _random(kind: type[ModelMixin], config: dict[str, Any], seed: int) -> ModelMixin:
    with _seeded(seed):
        return kind.from_config(config)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random numbers inside the context; afterwards the generator is in its former state."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        yield


def _describe(
    teacher: UNet2DConditionModel, student: ModelMixin, kept: Layers | None, *, inherited: bool
) -> tuple[str, ...]:
    """Return one line per block of the student, and one per part of the teacher that was removed."""
    whole = layer_lists(teacher)
    kept = whole | (kept or {})
    before, after = list(teacher.config.block_out_channels), list(student.config.block_out_channels)
    stages = len(after)
    shift = len(before) - stages
    blocks = [(f"down_blocks.{i}", f"down_blocks.{i}", i) for i in range(stages)]
    if student.mid_block is not None:
        blocks.append(("mid_block", "mid_block", stages - 1))
    blocks += [(f"up_blocks.{i}", f"up_blocks.{i + shift}", stages - 1 - i) for i in range(stages)]
    lines = []
    for block, source, stage in blocks:
        parts = [f"{block}: from {source}, {_listed(kept[source], whole[source], 'layer')}"]
        inside = f"{source}.transformer_blocks"
        if kept.get(inside) != whole.get(inside):
            parts.append(_listed(kept[inside], whole[inside], "transformer block") + " in each attention")
        same = before[stage] == after[stage]
        parts.append(f"{before[stage]} channels" if same else f"{before[stage]} to {after[stage]} channels")
        lines.append(", ".join(parts))
    if teacher.mid_block is not None and student.mid_block is None:
        lines.append("mid_block: removed")
    for stage in range(stages, len(before)):
        up = len(before) - 1 - stage
        lines.append(f"stage {stage} (down_blocks.{stage} and up_blocks.{up} of the teacher): removed")
    if shift and inherited and before[stages] > before[stages - 1] and kept[f"up_blocks.{shift}"][0] == 0:
        lines.append(
            f"up_blocks.0.resnets.0: its input has {before[stages - 1]} of the {before[stages]} channels that "
            f"up_blocks.{shift}.resnets.0 of the teacher gets from the stage below"
        )
    return tuple(lines)


def _listed(kept: Sequence[int], whole: Sequence[int], noun: str) -> str:
    """Return "all layers", "layer 0 of 3", "layers 0 and 2 of 3" or "layers 0 to 2 of 4"."""
    if len(kept) == len(whole):
        return f"all {noun}s"
    *most, last = map(str, kept) if kept else ["none"]
    listed = f"{kept[0]} to" if len(kept) > 2 and kept[-1] - kept[0] < len(kept) else ", ".join(most) + " and"
    return f"{noun}s {listed} {last} of {len(whole)}" if most else f"{noun} {last} of {len(whole)}"
