"""Draw the same prompts from the same noise with every model, and measure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from condistill.cache.latents import read_shard, write_shard
from condistill.config.sections import EvaluateSettings
from condistill.pipelines.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, image_noise, image_seed

Values = dict[str, NDArray[Any]]


class ImageClassifier(Protocol):
    """Knows what an image should show for a prompt; the miniature's classifier is one."""

    name: str

    def classify(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> tuple[Values, NDArray[np.float64]]:
        """Per attribute and for `all_correct` a boolean `[N]`; features `[N, D]`."""

    def reference(self, prompts: Sequence[str], *, seed: int) -> NDArray[np.float64]:
        """Features `[N, D]` of true images of the prompts."""


@dataclass(frozen=True)
class Round:
    """One evaluation seed: its prompts, and which split each is of."""

    seed: int
    prompts: list[str]
    splits: dict[str, slice]


def rounds(
    settings: EvaluateSettings, choose: Callable[[str, int, np.random.Generator], list[str]], splits: Sequence[str]
) -> list[Round]:
    """The prompts of every seed; `choose(split, n, generator)` draws n distinct prompts of a split."""
    from condistill.utils.randomness import generator

    made = []
    for seed in settings.seeds:
        prompts: list[str] = []
        places: dict[str, slice] = {}
        for number, split in enumerate(splits):
            rng = generator(seed, Stream.EVALUATION_PROMPTS, number)
            chosen = choose(split, settings.prompts_per_split, rng)
            places[split] = slice(len(prompts), len(prompts) + len(chosen))
            prompts += chosen
        places["all"] = slice(0, len(prompts))
        made.append(Round(seed, prompts, places))
    return made


def draw_round(
    path: Path,
    family: Family,
    denoiser: nn.Module,
    this: Round,
    *,
    batch_size: int,
    sampling: Sampling,
    on_images: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Latents `[N, C, h, w]` of a round; kept in `path`, so that an interrupted evaluation goes on."""
    if not path.exists():
        parts = []
        for start in range(0, len(this.prompts), batch_size):
            indices = range(start, min(start + batch_size, len(this.prompts)))
            stream, shape = Stream.EVALUATION_NOISE, family.latent_shape
            noise = np.stack([image_noise(this.seed, stream, i, shape) for i in indices])
            drawn = family.sample(
                denoiser,
                [this.prompts[i] for i in indices],
                torch.from_numpy(noise),
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                seeds=[image_seed(this.seed, stream, i) for i in indices],
                scheduler=sampling.scheduler(family),
            )
            parts.append(drawn.cpu().numpy())
            on_images(len(indices))
        write_shard(path, np.concatenate(parts), this.prompts)
    else:
        on_images(len(this.prompts))
    latents, _ = read_shard(path)
    return latents


def decode_all(family: Family, latents: NDArray[np.float32], *, batch_size: int) -> NDArray[np.uint8]:
    """Images `[N, H, W, 3]`."""
    starts = range(0, len(latents), batch_size)
    return np.concatenate([family.decode(torch.from_numpy(latents[i : i + batch_size].copy())) for i in starts])


def measure(
    drawn: Mapping[str, Sequence[NDArray[np.float32]]],
    family: Family,
    rounds: Sequence[Round],
    settings: EvaluateSettings,
    classifier: ImageClassifier | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Metrics of every model and split: `models[name][split][metric]`, with the spread over seeds beside them.

    Also what a picture grid needs of the first round: images and, with a classifier, right or wrong.
    """
    from condistill.evaluate.metrics.frechet import frechet_distance

    models: dict[str, dict[str, Any]] = {}
    shown: dict[str, Any] = {}
    references = [classifier.reference(r.prompts, seed=r.seed) for r in rounds] if classifier else []
    for name, latents_of_rounds in drawn.items():
        classified: list[tuple[Values, NDArray[np.float64]]] = []
        values: list[Values] = []
        for number, (this, latents) in enumerate(zip(rounds, latents_of_rounds, strict=True)):
            per_image: Values = {}
            if name != "teacher":
                difference = (latents - drawn["teacher"][number]).astype(np.float64)
                per_image["latent_rmse"] = np.sqrt((difference**2).mean((1, 2, 3)))
            if classifier or number == 0:
                images = decode_all(family, latents, batch_size=settings.batch_size)
            if classifier:
                classified.append(classifier.classify(images, this.prompts))
                per_image |= classified[-1][0]
            values.append(per_image)
            if number == 0:
                shown[name] = {"images": images, "right": per_image.get("all_correct")}
        models[name] = _summarise(values, rounds)
        for split in models[name].keys() - {"spread"} if classifier else ():
            parts = [r.splits[split] for r in rounds]
            here = np.concatenate([features[part] for (_, features), part in zip(classified, parts, strict=True)])
            true = np.concatenate([features[part] for features, part in zip(references, parts, strict=True)])
            models[name][split]["frechet_classifier"] = frechet_distance(here, true)
    return models, shown


def _summarise(values: Sequence[Values], rounds: Sequence[Round]) -> dict[str, Any]:
    """Mean over images and seeds, and the standard deviation over seeds."""
    summary: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for split in rounds[0].splits:
        per_seed = {
            metric: [float(v[metric][r.splits[split]].mean()) for v, r in zip(values, rounds, strict=True)]
            for metric in values[0]
        }
        summary[split] = {metric: statistics.fmean(means) for metric, means in per_seed.items()}
        if len(rounds) > 1:
            spread[split] = {metric: statistics.stdev(means) for metric, means in per_seed.items()}
    return summary | ({"spread": spread} if spread else {})


def write_grid(
    directory: Path, shown: Mapping[str, Any], first: Round, *, per_split: int
) -> dict[str, list[dict[str, Any]]]:
    """Write the pictures the report shows, and return which belong to which prompt."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = [split for split in first.splits if split != "all"] or ["all"]
    grid: dict[str, list[dict[str, Any]]] = {}
    for split in splits:
        grid[split] = []
        for i in range(first.splits[split].start, first.splits[split].stop)[:per_split]:
            entry: dict[str, Any] = {"prompt": first.prompts[i], "images": {}, "right": {}}
            for name, model in shown.items():
                file = f"{split}-{i:04d}-{name}.png"
                Image.fromarray(model["images"][i]).save(directory / file)
                entry["images"][name] = file
                if model["right"] is not None:
                    entry["right"][name] = bool(model["right"][i])
            grid[split].append(entry)
    return grid
