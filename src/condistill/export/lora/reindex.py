"""Re-index a LoRA of a teacher: rename its layers along a student's map, and cut its matrices as weights were cut.

A student's layer has rows O and columns I of its teacher's weight W. A LoRA adds B A to W, so what it adds to the
student is (B A)[O, I] = B[O] A[:, I]: rows of B and columns of A. Its rank and its scale stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from condistill.students.layer_map import LayerMap, Selection
from condistill.teachers.lora import LoraLayer


@dataclass(frozen=True)
class Reindexed:
    """A LoRA as it applies to a student."""

    layers: tuple[LoraLayer, ...]
    dropped: Mapping[str, int]
    """Number of its layers in each part of the teacher that the student has not, by the path of that part."""
    norm_kept: float | None
    """Norm of all that it adds to the student's denoiser, as a share of what it adds to the teacher's; None where it
    adds nothing."""


def reindex(layers: Sequence[LoraLayer], layer_map: LayerMap, denoiser: str) -> Reindexed:
    """Return a LoRA of a teacher as it applies to a student.

    Args:
        layers: of the teacher; those of other components than the denoiser stay as they are.
        layer_map: of the student.
        denoiser: the component that is the denoiser.
    """
    places = {source.name: (name, source.selection) for name, source in layer_map.items()}
    moved: list[LoraLayer] = []
    dropped: list[str] = []
    before, after = 0.0, 0.0
    for layer in layers:
        if layer.component != denoiser:
            moved.append(layer)
            continue
        before += squared_norm(layer)
        if (place := places.get(f"{layer.module}.weight")) is None:
            dropped.append(layer.module)
            continue
        name, selection = place
        moved.append(cut(replace(layer, module=name.removesuffix(".weight")), selection))
        after += squared_norm(moved[-1])
    share = (after / before) ** 0.5 if before else None
    return Reindexed(tuple(moved), removed_parts(dropped, places), share)


def cut(layer: LoraLayer, selection: Selection) -> LoraLayer:
    """Return the part of a LoRA's layer that adds to the selected part of its weight."""
    outputs, inputs, *_ = (*selection, None, None)
    up = layer.up if outputs is None else layer.up.index_select(0, outputs)
    down = layer.down if inputs is None else layer.down.index_select(1, inputs)
    return replace(layer, up=up.contiguous(), down=down.contiguous())


def squared_norm(layer: LoraLayer) -> float:
    """Return the sum of the squares of what a layer adds; the product of its matrices is not formed."""
    down, up = (matrix.double().flatten(1) for matrix in (layer.down, layer.up))
    grams: Tensor = (up.T @ up) * (down @ down.T)
    return layer.factor**2 * max(float(grams.sum()), 0.0)


def removed_parts(modules: Iterable[str], kept: Iterable[str]) -> dict[str, int]:
    """Return how many of the modules are in each part that was removed as a whole: the outermost without a kept weight.

    Args:
        kept: names of the teacher's weights that the student has.
    """
    present: set[str] = set()
    for name in kept:
        parts = name.split(".")
        present.update(".".join(parts[:end]) for end in range(1, len(parts)))
    counts: Counter[str] = Counter()
    for module in modules:
        parts = module.split(".")
        outermost = next(
            (path for end in range(1, len(parts)) if (path := ".".join(parts[:end])) not in present), module
        )
        counts[outermost] += 1
    return dict(counts)
