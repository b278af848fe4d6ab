"""Where the weights of a student come from: for each, the teacher's weight, and the channels that were kept of it.

Students are cut along these maps, so what is cut along the same map later, such as a LoRA, fits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from torch import Tensor

from condistill.utils.meta import plain_config
from condistill.utils.record import Record, RecordFile

LAYERS_NAME = "layers.json"
Selection = tuple[Tensor | None, ...]
"""Kept indices of each leading dimension of a weight; None keeps the whole dimension."""


@dataclass(frozen=True)
class WeightSource:
    """The part of a teacher's weight that a weight of a student is a copy of."""

    name: str
    """Of the teacher's weight."""
    selection: Selection = ()


LayerMap = Mapping[str, WeightSource]
"""By the names of the student's weights; a weight that the teacher has only implicitly is missing."""


def take(weight: Tensor, selection: Selection) -> Tensor:
    """Return a float32 copy of the selected part of a weight; on the meta device, a tensor of its shape."""
    if weight.is_meta:
        kept = [len(indices) if indices is not None else weight.shape[i] for i, indices in enumerate(selection)]
        return torch.empty(*kept, *weight.shape[len(kept) :], device="meta")
    part = weight.detach()
    for dimension, indices in enumerate(selection):
        part = part if indices is None else part.index_select(dimension, indices.to(part.device))
    return part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def chained(first: LayerMap, second: LayerMap) -> dict[str, WeightSource]:
    """Return the map of a student that was cut from a student: from its weights to those of the first teacher.

    Args:
        first: of the student in the middle.
        second: of the last student, whose teacher is the one in the middle.
    """
    joined = {}
    for name, source in second.items():
        if source.name in first:
            before = first[source.name]
            joined[name] = WeightSource(before.name, _selected(before.selection, source.selection))
    return joined


def _selected(first: Selection, second: Selection) -> Selection:
    """Return the selection that selects as two do, one after the other."""
    count = max(len(first), len(second))
    pairs = zip(_padded(first, count), _padded(second, count), strict=True)
    return tuple(one if two is None else two if one is None else one[two] for one, two in pairs)


def _padded(selection: Selection, count: int) -> Selection:
    return (*selection, *[None] * (count - len(selection)))


class LayerRecord(Record):
    """The source of one layer of a student."""

    teacher: str
    """Path of the teacher's layer."""
    outputs: int | None = None
    """Which of the recorded selections the output channels are; None: all."""
    inputs: int | None = None
    """Which of the recorded selections the input channels are; None: all."""


class LayersRecord(RecordFile):
    """`layers.json` of a student: the source of every layer with a weight of two dimensions or more."""

    format: Literal[1] = 1
    teacher: dict[str, Any]
    """Config of the denoiser that the student was cut from."""
    layers: dict[str, LayerRecord]
    """By path in the student."""
    selections: tuple[str, ...]
    """Each one ascending or in the order of the student's channels: numbers with spaces between them."""

    @classmethod
    def of(cls, teacher: ModelMixin, layer_map: LayerMap) -> LayersRecord:
        """Return the record of a map; equal selections are recorded once."""
        shapes = {name: weight.dim() for name, weight in teacher.named_parameters()}
        known: dict[str, int] = {}

        def number(selection: Selection, dimension: int) -> int | None:
            indices = selection[dimension] if dimension < len(selection) else None
            return None if indices is None else known.setdefault(" ".join(map(str, indices.tolist())), len(known))

        layers = {
            name.removesuffix(".weight"): LayerRecord(
                teacher=source.name.removesuffix(".weight"),
                outputs=number(source.selection, 0),
                inputs=number(source.selection, 1),
            )
            for name, source in layer_map.items()
            if name.endswith(".weight") and shapes.get(source.name, 0) > 1
        }
        return cls(teacher=plain_config(teacher), layers=layers, selections=tuple(known))

    def check_content(self) -> None:
        """Check that every selection consists of numbers and is there."""
        channels = self._channels()
        for name, layer in self.layers.items():
            for number in (layer.outputs, layer.inputs):
                if number is not None and not 0 <= number < len(channels):
                    raise ValueError(f"{name} has the selection {number} of {len(channels)}")

    def layer_map(self) -> dict[str, WeightSource]:
        """Return the map that was recorded."""
        channels = self._channels()

        def selection(*numbers: int | None) -> Selection:
            return tuple(None if number is None else channels[number] for number in numbers)

        return {
            f"{name}.weight": WeightSource(f"{layer.teacher}.weight", selection(layer.outputs, layer.inputs))
            for name, layer in self.layers.items()
        }

    def _channels(self) -> list[Tensor]:
        return [torch.tensor([int(number) for number in text.split()]) for text in self.selections]
