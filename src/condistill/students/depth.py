"""Students with fewer layers, for transformers whose config counts the layers of their lists.

Nothing else of a transformer changes: every kept layer is a copy of the teacher's, in the teacher's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import nn

from condistill.errors import CondistillError, nearest
from condistill.students.layer_map import WeightSource, take
from condistill.teachers.registry import family_of, is_joint_layer
from condistill.teachers.traits import LayerList
from condistill.utils.meta import build_on_meta, plain_config

Kept = dict[str, tuple[int, ...]]
"""The teacher's layers that a student keeps, in rising order, by the name of their list."""


def layer_lists(denoiser: ModelMixin) -> dict[str, int]:
    """Return the number of layers in each of a transformer's lists of layers.

    Raises:
        CondistillError: it has no such lists.
    """
    lists = {name: len(getattr(denoiser, name)) for name in _declared_lists(denoiser)}
    if not lists:
        raise CondistillError(f"a {type(denoiser).__name__} has no list of layers to shorten")
    return lists


def _declared_lists(denoiser: ModelMixin) -> dict[str, LayerList]:
    """Return the declared lists of layers that are not empty, by name."""
    declared = family_of(denoiser).layer_lists
    return {layers.name: layers for layers in declared if denoiser.config.get(layers.count_key)}


def listed_layers(denoiser: ModelMixin, keep: Mapping[str, Sequence[int]]) -> Kept:
    """Return the layers that `student.keep` lists; all layers of the lists that it does not name.

    Raises:
        CondistillError: a list or a layer does not exist, or a layer that must be kept is left out.
    """
    lists, declared = layer_lists(denoiser), _declared_lists(denoiser)
    for name, indices in keep.items():
        if name not in lists:
            raise CondistillError(f"student.keep names {name!r}, which is not a list of layers{nearest(name, lists)}")
        kept, last = list(indices), lists[name] - 1
        if not kept or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] <= last:
            raise CondistillError(
                f"student.keep.{name} is {kept}; give at least one of the layers 0 to {last}, each once, ascending"
            )
        if kept[-1] != last and declared[name].keeps_last:
            raise CondistillError(
                f"student.keep.{name} is {kept}; the last layer, {last}, must be kept, because only the last layer is "
                "built without an output for the text"
            )
    return {name: tuple(keep.get(name, range(count))) for name, count in lists.items()}


def share_of_layers(denoiser: ModelMixin, depth: float, scores: Mapping[str, Sequence[float]] | None = None) -> Kept:
    """Return the kept layers of each list: `round(depth * n)` of its n layers, at least one.

    These are the first, the last and those with the highest block influence. A single kept layer is the last.

    Args:
        scores: block influence of every layer; without scores, the kept layers are spaced evenly.

    Raises:
        CondistillError: all layers would be kept.
    """
    lists = layer_lists(denoiser)
    kept: Kept = {}
    for name, total in lists.items():
        count = max(round(depth * total), 1)
        ends = {0, total - 1} if count > 1 else {total - 1}
        if scores is None:
            inner = {round(i * (total - 1) / (count - 1)) for i in range(count)} if count > 1 else set()
        else:
            influence = scores[name]
            ranked = sorted(set(range(total)) - ends, key=lambda layer: (-influence[layer], layer))
            inner = set(ranked[: max(count - len(ends), 0)])
        kept[name] = tuple(sorted(ends | inner))
    if all(len(kept[name]) == total for name, total in lists.items()):
        layers = " and ".join(f"{total} {name}" for name, total in lists.items())
        raise CondistillError(f"student.depth {depth} of {layers} keeps all layers; give a smaller depth")
    return kept


def shortened_config(denoiser: ModelMixin, kept: Kept) -> dict[str, Any]:
    """Return the config of a denoiser with only the kept layers."""
    config, declared = plain_config(denoiser), _declared_lists(denoiser)
    for name, layers in kept.items():
        config[declared[name].count_key] = len(layers)
        for key in filter(config.get, declared[name].index_keys):
            config[key] = tuple(i for i, layer in enumerate(layers) if layer in config[key])
    return config


def source_of(name: str, kept: Kept) -> str:
    """Return the path of the teacher's module or weight that the student's module or weight `name` copies."""
    head, _, rest = name.partition(".")
    if head not in kept or not rest:
        return name
    index, _, rest = rest.partition(".")
    return ".".join(filter(None, (head, str(kept[head][int(index)]), rest)))


def weight_sources(student: ModelMixin, kept: Kept) -> dict[str, WeightSource]:
    """Return the teacher's weight that each weight of a student with the kept layers is a copy of."""
    return {name: WeightSource(source_of(name, kept)) for name in student.state_dict()}


def remove_layers(teacher: ModelMixin, kept: Kept) -> ModelMixin:
    """Return a float32 denoiser with copies of the teacher's kept layers; on meta for a teacher on meta."""
    kind, config = type(teacher), shortened_config(teacher, kept)
    device = next(teacher.parameters()).device
    if device.type == "meta":
        student = build_on_meta(kind, config)
    else:
        with init_empty_weights():  # not on meta: position tables are buffers, which must be computed
            student = kind.from_config(config)
    teacher_weights = teacher.state_dict()
    sources = weight_sources(student, kept)
    weights = {name: take(teacher_weights[source.name], source.selection) for name, source in sources.items()}
    student.load_state_dict(weights, strict=True, assign=True)
    return student.to(device)


def describe_layers(teacher: ModelMixin, kept: Kept, how: str) -> tuple[str, ...]:
    """Return a line for each list of layers, for the model card.

    Args:
        how: the way the kept layers were chosen.
    """
    lines = []
    for name, total in layer_lists(teacher).items():
        layers = kept[name]
        if len(layers) == total:
            lines.append(f"{name}: all {total} layers" if total > 1 else f"{name}: its only layer")
        else:
            noun = "layer" if len(layers) == 1 else "layers"
            lines.append(f"{name}: {noun} {', '.join(map(str, layers))} of {total}, {how}")
    return tuple(lines)


def image_stream(layer: nn.Module, output: Any) -> Any:
    """Return the part of a layer's output that belongs to the image.

    A joint layer returns (text, image); of other layers with several outputs it is the first.
    """
    if isinstance(output, tuple | list):
        return output[1 if is_joint_layer(layer) else 0]
    return output
