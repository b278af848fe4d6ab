"""Generation for the evaluation: every model generates the same prompts from the same noise, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from condistill.config.recipe import TEACHER
from condistill.errors import CondistillError
from condistill.evaluate.batches import LATENTS_NAME, BatchFiles
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.rounds import Round
from condistill.teachers.family import Family
from condistill.utils.randomness import image_noise, image_seed


@dataclass(frozen=True)
class Watch:
    """What is called while batches are made."""

    on_images: Callable[[int, str], object] = lambda _count, _model: None
    """With the number of images of every batch that was made, and the model."""
    on_found: Callable[[int, str], object] = lambda _count, _model: None
    """With the number of images of every batch that was there, and the model."""
    on_damaged: Callable[[Path], object] = lambda _: None
    """With the path of a damaged file before it is made again."""


def generate_latents(
    model: EvaluatedModel,
    rounds: Sequence[Round],
    *,
    batch_size: int,
    part: tuple[int, int] = (0, 1),
    watch: Watch = Watch(),
) -> None:
    """Generate the latents of a model that are missing or damaged; its directory was begun before.

    The model is not loaded where nothing is missing. The noise of a row depends on the round's seed and the row's
    number alone.

    Args:
        batch_size: images that are generated at once.
        part: see `BatchFiles.part`.

    Raises:
        CondistillError: latents are not finite, so they cannot be measured; they are not written.
    """
    files = BatchFiles.of(model.latents)
    missing: list[tuple[Round, range]] = []
    whole = [files.has_whole(each) for each in rounds]
    for number, rows in files.part(rounds, part):
        each = rounds[number]
        if whole[number] or files.has(each, rows):
            watch.on_found(len(rows), model.name)
            continue
        if (path := files.path(each, rows)).exists():
            watch.on_damaged(path)
        missing.append((each, rows))
    if not missing:
        return
    with model.loaded() as (family, denoiser):
        for each, rows in missing:
            parts = [range(start, min(start + batch_size, rows.stop)) for start in rows[::batch_size]]
            latents = np.concatenate([_generate(model, family, denoiser, each, part) for part in parts])
            files.write(each, rows, {LATENTS_NAME: latents})
            watch.on_images(len(rows), model.name)


def _generate(
    model: EvaluatedModel, family: Family, denoiser: nn.Module, round_: Round, rows: range
) -> NDArray[np.float32]:
    """Return latents `[B, C, h, w]` of some rows."""
    numbers = [round_.number(row) for row in rows]
    prompts = [round_.prompts[row] for row in rows]
    noise = np.stack([image_noise(round_.seed, model.stream, number, family.latent_shape) for number in numbers])
    latents = family.sample(
        denoiser,
        prompts,
        torch.from_numpy(noise),
        num_inference_steps=model.sampling.num_inference_steps,
        guidance_scale=model.sampling.guidance_scale,
        seeds=[image_seed(round_.seed, model.stream, number) for number in numbers],
        scheduler=model.sampling.scheduler(family),
    )
    generated: NDArray[Any] = latents.cpu().numpy()
    _check_finite(generated, model.name, prompts)
    return generated


def _check_finite(latents: NDArray[np.float32], model: str, prompts: Sequence[str]) -> None:
    """Refuse latents `[B, C, h, w]` with a NaN or an infinity: every figure of the model would be none."""
    bad = [prompt for prompt, latent in zip(prompts, latents, strict=True) if not np.isfinite(latent).all()]
    if not bad:
        return
    remedy = "try teacher.dtype: float32, or another scheduler in the teacher's directory"
    if model != TEACHER:
        remedy = (
            "its weights are too large, which a lower distill.optimizer.learning_rate prevents (with --update, which "
            "trains it again), or they do not fit teacher.dtype (try float32)"
        )
    raise CondistillError(
        f"{model} generated latents that are not finite for {len(bad)} of {len(prompts)} prompt(s), such as "
        f"{bad[0]!r}, so it cannot be measured: {remedy}"
    )
