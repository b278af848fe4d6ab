"""How much each layer of a transformer matters: by how little it changes what it gets, over cached latents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condistill.cache.latents import LatentCache
from condistill.students.depth import image_stream, layer_lists
from condistill.students.scores.calibration import States, cached_states, kept
from condistill.teachers.family import Family

SCORES_NAME = "layer_influence.json"


def block_influence(family: Family, samples: Iterable[States]) -> dict[str, list[float]]:
    """How much each layer of the teacher changes its input: 1 - cosine similarity of what goes in and comes out.

    Block influence (Men et al., ShortGPT, arXiv 2403.03853, eq. 1) of the image's tokens, mean over tokens and samples.

    Args:
        samples: in batches of any size.
    """
    denoiser = family.denoiser
    lists = layer_lists(denoiser)
    sums = {name: [0.0] * length for name, length in lists.items()}
    count = 0

    def measure(name: str, index: int) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            before: Tensor = named["hidden_states"] if "hidden_states" in named else inputs[0]
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
            for states in samples:
                family.predict(denoiser, states.x_t, states.timesteps, states.condition)
                count += len(states.x_t)
    finally:
        for handle in handles:
            handle.remove()
    return {name: [total / count for total in of_list] for name, of_list in sums.items()}


def kept_influence(
    family: Family,
    cache: LatentCache,
    directory: Path,
    accelerator: Any,
    *,
    seed: int,
    batch_size: int,
    guidance_range: tuple[float, float] | None = None,
) -> dict[str, list[float]] | None:
    """The scores of a run, kept in `directory`; None where nothing is cached.

    Args:
        guidance_range: of scales, for teachers that are told one.

    Raises:
        CorruptError: the file is not what was written.
    """
    if not len(cache):
        return None

    def measure(file: Path) -> None:
        states = cached_states(family, cache, seed=seed, batch_size=batch_size, guidance_range=guidance_range)
        file.write_text(json.dumps(block_influence(family, states), indent=2) + "\n", encoding="utf-8")

    def read(file: Path) -> dict[str, list[float]]:
        scores: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8"))
        return scores

    return kept(directory / SCORES_NAME, accelerator, measure, read)
