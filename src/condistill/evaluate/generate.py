"""Generation for the evaluation: every model generates the same prompts from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from condistill.cache.latents import is_shard, read_shard, write_shard
from condistill.config.evaluate import EvaluateSettings
from condistill.config.recipe import TEACHER
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, generator, image_noise, image_seed

ALL = "all"
"""The split that holds every prompt of a round."""


@dataclass(frozen=True)
class Round:
    """The prompts of one evaluation seed, and the rows of each split; `all` holds every row."""

    seed: int
    prompts: list[str]
    splits: dict[str, slice]
    numbers: tuple[int, ...] = ()
    """By row, the number that its noise depends on; empty: the number of the row."""

    @property
    def parts(self) -> dict[str, slice]:
        """The splits that do not overlap: every split but `all`, or `all` where it is the only one."""
        return {name: rows for name, rows in self.splits.items() if name != ALL} or self.splits

    def number(self, row: int) -> int:
        """Return the number that the noise of a row depends on."""
        return self.numbers[row] if self.numbers else row

    def head(self, per_split: int) -> Round:
        """Return the first prompts of every split as a round, whose noise is the same."""
        prompts: list[str] = []
        numbers: list[int] = []
        splits: dict[str, slice] = {}
        for name, rows in self.parts.items():
            chosen = range(rows.start, min(rows.stop, rows.start + per_split))
            splits[name] = slice(len(prompts), len(prompts) + len(chosen))
            prompts += [self.prompts[row] for row in chosen]
            numbers += [self.number(row) for row in chosen]
        return Round(self.seed, prompts, {**splits, ALL: slice(0, len(prompts))}, tuple(numbers))

    def count(self, split: str) -> int:
        """Return the number of prompts of a split."""
        return len(range(*self.splits[split].indices(len(self.prompts))))


def choose_rounds(
    settings: EvaluateSettings, choose: Callable[[str, int, np.random.Generator], list[str]], splits: Sequence[str]
) -> list[Round]:
    """Return one round per evaluation seed.

    Args:
        choose: returns up to n distinct prompts of a split, given the split, n and a random generator.
    """
    rounds = []
    for seed in settings.seeds:
        prompts: list[str] = []
        rows: dict[str, slice] = {}
        for number, split in enumerate(splits):
            rng = generator(seed, Stream.EVALUATION_PROMPTS, number)
            chosen = choose(split, settings.prompts_per_split, rng)
            rows[split] = slice(len(prompts), len(prompts) + len(chosen))
            prompts += chosen
        rows[ALL] = slice(0, len(prompts))
        rounds.append(Round(seed, prompts, rows))
    return rounds


def generate_round(
    path: Path,
    family: Family,
    denoiser: nn.Module,
    round_: Round,
    *,
    model: str,
    batch_size: int,
    sampling: Sampling,
    stream: Stream = Stream.EVALUATION_NOISE,
    on_images: Callable[[int], None] = lambda _: None,
    on_found: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Return latents `[N, C, h, w]` of a round; they are kept in `path`, so that an interrupted evaluation resumes.

    Args:
        model: the name of the model, for an error.
        stream: of the noise.
        on_images: is called with the number of images of every finished batch.
        on_found: is called with the number of images if they were there; None: `on_images` is.

    Raises:
        CondistillError: latents are not finite, so they cannot be measured; nothing was written.
    """
    count = len(round_.prompts)
    if is_shard(path, round_.prompts):
        (on_found or on_images)(count)
    else:
        parts = []
        for start in range(0, count, batch_size):
            rows = range(start, min(start + batch_size, count))
            parts.append(_generate(family, denoiser, round_, rows, sampling=sampling, stream=stream))
            _check_finite(parts[-1], model, [round_.prompts[row] for row in rows])
            on_images(len(rows))
        write_shard(path, np.concatenate(parts), round_.prompts)
    latents, _ = read_shard(path)
    _check_finite(latents, model, round_.prompts)
    return latents


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


def _generate(
    family: Family, denoiser: nn.Module, round_: Round, rows: range, *, sampling: Sampling, stream: Stream
) -> NDArray[np.float32]:
    """Return latents of some rows; noise and seed of a row depend on the round's seed and the row alone."""
    numbers = [round_.number(row) for row in rows]
    noise = np.stack([image_noise(round_.seed, stream, number, family.latent_shape) for number in numbers])
    latents = family.sample(
        denoiser,
        [round_.prompts[row] for row in rows],
        torch.from_numpy(noise),
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        seeds=[image_seed(round_.seed, stream, number) for number in numbers],
        scheduler=sampling.scheduler(family),
    )
    generated: NDArray[np.float32] = latents.cpu().numpy()
    return generated
