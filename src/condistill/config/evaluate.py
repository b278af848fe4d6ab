"""The section `evaluate` of a recipe: what is generated, by which networks it is measured, and what is shown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from condistill.config.sections import (
    FEWEST_CLASSIFIED,
    Amount,
    Batch,
    Count,
    Pixels,
    Seed,
    Settings,
    Shown,
    SolverSteps,
    Words,
)

ResizeFilter = Literal["bicubic", "bilinear", "lanczos", "box"]
"""Filters of Pillow, which average over the area of an output pixel when an image gets smaller."""


class NetworkSettings(Settings):
    """The networks whose features metrics read: each a file, a directory or a hub name; empty: not used."""

    inception: str | None = Field(default=None, min_length=1)
    """torch-fidelity's Inception-v3: FID, KID, Inception score, precision and recall, density and coverage."""
    dinov2: str | None = Field(default=None, min_length=1)
    """A DINOv2 that transformers loads: FD-DINOv2, agreement with the teacher, diversity."""
    clip: str | None = Field(default=None, min_length=1)
    """A CLIP or SigLIP that transformers loads: CLIP score, CMMD."""
    pickscore: str | None = Field(default=None, min_length=1)
    """The weights of PickScore."""
    hpsv2: str | None = Field(default=None, min_length=1)
    """The weights of HPSv2."""


class EvaluateSettings(Settings):
    prompts_per_split: Count = 100
    """Random prompts of the seen and of the unseen split each; `all` is both together."""
    num_inference_steps: SolverSteps | None = None
    """Empty: as in the cache."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Empty: as in the cache."""
    batch_size: Batch = 8
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1, max_length=1000)] = (0,)
    """One whole evaluation per seed, each with its own prompts and noise; spreads are over these."""
    classifier: Literal["none", "miniature"] = "none"
    """`miniature`: classifies every attribute of every image; only for the miniature's world."""
    grid: Shown = 6
    """Prompts per split whose images the report shows."""
    networks: NetworkSettings = Field(default_factory=NetworkSettings)
    reference: str | None = Field(default=None, min_length=1)
    """What sets of images are compared with: a folder of images, or a statistics file (`.npz`) for FID; empty: the
    teacher's images of the same prompts."""
    resize: Pixels | None = None
    """Height and width in pixels that images get before any network reads them; empty: as generated."""
    resize_filter: ResizeFilter = "bicubic"
    prompt_files: Words = ()
    """Prompts to evaluate; empty: prompts of the text pool."""
    prompt_column: str | None = Field(default=None, min_length=1)
    """Column of the prompts in `prompt_files` that are tables; not needed if only one column can be text."""
    category_column: str | None = Field(default=None, min_length=1)
    """Column of `prompt_files` with the category of each prompt, by which scores are shown too."""
    keywords: Words = ()
    """Words, or files with one word per line, that make a prompt of `prompt_files` unseen; empty:
    `prompts.unseen_words`."""
    diversity_prompts: Amount = 16
    """Prompts for which `diversity_seeds` images each are generated, to measure how much they differ; only with
    `networks.dinov2`."""
    diversity_seeds: Annotated[int, Field(ge=2, le=1000)] = 4

    @model_validator(mode="after")
    def _check_prompts(self) -> EvaluateSettings:
        chosen = [name for name in ("prompt_column", "category_column", "keywords") if getattr(self, name)]
        if chosen and not self.prompt_files:
            raise ValueError(
                f"{chosen[0]} is about the prompts of prompt_files, which is empty; name the files, or leave out "
                f"{' and '.join(chosen)}"
            )
        return self

    @model_validator(mode="after")
    def _check_images(self) -> EvaluateSettings:
        if twice := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(
                f"seeds has {twice[0]} twice, and an evaluation with the same seed is the same; remove one"
            )
        if self.classifier != "none" and self.prompts_per_split * len(self.seeds) < FEWEST_CLASSIFIED:
            raise ValueError(
                f"prompts_per_split is {self.prompts_per_split}, and classifier {self.classifier!r} needs "
                f"{FEWEST_CLASSIFIED} images of every split; raise it to {FEWEST_CLASSIFIED} or more"
            )
        return self
