"""Scores of a transformer's layers: how much each changes its input, over calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condistill.students.depth import image_stream, layer_lists
from condistill.students.scores.calibration import CalibrationBatch
from condistill.teachers.family import Family


def layer_scores(family: Family, batches: Iterable[CalibrationBatch]) -> dict[str, list[float]]:
    """Return the block influence of each layer of the teacher, by list of layers.

    Block influence (Men et al., ShortGPT, arXiv 2403.03853, eq. 1) is 1 - cosine similarity of a layer's input and
    output. Here it is that of the image tokens, averaged over tokens and samples.
    """
    denoiser = family.denoiser
    lists = layer_lists(denoiser)
    sums = {name: [0.0] * length for name, length in lists.items()}
    count = 0

    def measure(name: str, index: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            before: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            similarity = nn.functional.cosine_similarity(before.float(), image_stream(layer, output).float(), dim=-1)
            sums[name][index] += float((1 - similarity).flatten(1).mean(1).sum())

        return hook

    handles = [
        layer.register_forward_hook(measure(name, index), with_kwargs=True)
        for name in lists
        for index, layer in enumerate(getattr(denoiser, name))
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                family.predict(denoiser, batch.x_t, batch.timesteps, batch.condition)
                count += len(batch.x_t)
    finally:
        for handle in handles:
            handle.remove()
    return {name: [total / count for total in totals] for name, totals in sums.items()}
