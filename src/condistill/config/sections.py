"""The sections of a recipe other than `distill`. Defaults are the paper's, or a comment says otherwise.

"The paper" is Kim et al., Random Conditioning with Distillation for Data-Efficient Diffusion Model
Compression, CVPR 2025 (arXiv 2504.02011).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    field_validator,
    model_validator,
)

# The bounds of all whole numbers. Each is far above what any run uses, and below what a computer can count, hold or
# write into a file name, so that a slip of the keyboard is refused and nothing overflows hours later.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[int, Field(ge=0, le=10**9)]
"""Of images, prompts or optimiser steps; may be 0."""
Count = Annotated[int, Field(gt=0, le=10**9)]
"""Of prompts or optimiser steps."""
Batch = Annotated[int, Field(gt=0, le=10**6)]
"""Of samples that are held at once, or are in one file."""
SolverSteps = Annotated[int, Field(gt=0, le=10**4)]
"""A scheduler has about 1,000 timesteps."""
Pixels = Annotated[int, Field(gt=0, le=2**14)]
Channels = Annotated[int, Field(gt=0, le=10**6)]
Index = Annotated[int, Field(ge=0, le=10**4)]
"""Of a layer."""
Clusters = Annotated[int, Field(ge=2, le=10**5)]
Shown = Annotated[int, Field(gt=0, le=10**3)]
"""Of prompts whose images are on one page."""

Probability = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Indices = Annotated[tuple[Index, ...], Field(strict=False)]
FEWEST_CLASSIFIED = 2
"""Images of a split that a classifier's metrics need: the covariance of one image's features does not exist."""
MAX_VARIANTS = 100
"""Students of one recipe."""
MINIATURE = "miniature"
"""The name of the embedded teacher, its captions and its classifier."""

SHIPPED_CONFIGS = ("sd-1", "sd-1-inpaint", "sd-2", "sd-2-v", "sd-2-inpaint", "sdxl", "sdxl-v")
"""Names of the configs for one-file teachers that come with condistill."""

BlockPreset = Literal["b-base", "b-small", "b-tiny", "koala-1b", "koala-700m"]
WidthPreset = Literal["c-base", "c-small", "c-tiny", "c-micro"]
Importance = Literal["weight_norm", "activation", "taylor"]
Preset = Literal[BlockPreset, WidthPreset]


class Settings(BaseModel):
    """Base class of all settings: frozen; an unknown key is an error; types are strict, so `"3"` is not 3.

    Infinity and NaN are errors in every number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, allow_inf_nan=False)


class LoraSettings(Settings):
    """A LoRA that is added to the teacher's weights."""

    path: str = Field(min_length=1)
    """A safetensors file."""
    scale: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Factor of what it adds."""


class TeacherSettings(Settings):
    pipeline: str = Field(min_length=1)
    """A diffusers pipeline directory, a hub name, one safetensors file, or `miniature`."""
    config: str | None = Field(default=None, min_length=1)
    """For one file: a directory with its model_index.json, configs and tokenizers, or the name of configs that are
    shipped; empty: those that fit the file."""
    loras: Annotated[tuple[LoraSettings, ...], Field(strict=False, max_length=100)] = ()
    """Added to the teacher's weights, in this order, before anything else."""
    vae: str | None = Field(default=None, min_length=1)
    """Replaces the pipeline's autoencoder: a directory, or a safetensors file."""
    scheduler: str | None = Field(default=None, min_length=1)
    """Replaces the pipeline's scheduler: a directory, or a scheduler_config.json."""
    family: str = "auto"
    """A registered teacher family; `auto`: found from the pipeline's class."""
    revision: str | None = None
    variant: str | None = None
    """File variant, such as `fp16`."""
    resolution: Pixels | None = None
    """Height and width of the images in pixels; empty: the pipeline's own."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, float16 on other GPUs, float32 on a CPU."""


class PromptSettings(Settings):
    files: Words = Field(min_length=1)
    """The text pool: txt, csv, jsonl or parquet; `miniature` for the captions of its world."""
    column: str | None = None
    """The column of the prompts in csv, jsonl and parquet; not needed if there is only one column of text."""
    cached_files: Words = ()
    """Prompts to generate latents for; empty: prompts of `files`."""
    unseen_words: Words = ()
    """Prompts with one of these words are never cached."""
    unseen_files: Words = ()
    """Prompts of these files are in the pool, and are never cached."""

    @property
    def every_file(self) -> tuple[str, ...]:
        """All files that the pool is built from."""
        return self.files + self.cached_files + self.unseen_files


class CacheSettings(Settings):
    size: Amount = 212_776  # the paper's LAION-Aesthetics 6.5+ prompts
    """Latents to generate; 0 if every student learns on paths from pure noise (`distill.path.start: noise`)."""
    num_inference_steps: SolverSteps = 25
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    batch_size: Batch = 8
    shard_size: Batch = 1024
    """Images per file. An interrupted cache stage resumes after the last whole file."""
    dtype: Literal["float16", "float32"] = "float16"


def _parse_share(value: Any) -> Any:
    """Return a share such as `0.4x` as a number, and anything else unchanged."""
    number = value.removesuffix("x") if isinstance(value, str) and value.endswith("x") else value
    try:
        return float(number)
    except (TypeError, ValueError):
        return value


Share = Annotated[float, BeforeValidator(_parse_share), Field(gt=0, lt=1)]


class TargetSettings(Settings):
    """The most that the student may cost, as a share of its teacher: `0.4` or `0.4x`."""

    params: Share | None = None
    macs: Share | None = None
    """Multiply-accumulates of one forward."""
    latency: Share | None = None
    """Time of one forward of one sample on this device, measured before training."""

    @model_validator(mode="after")
    def _check_given(self) -> TargetSettings:
        if not any((self.params, self.macs, self.latency)):
            raise ValueError("give params, macs or latency: the most that the student may cost, such as 0.5x")
        return self


class StudentSettings(Settings):
    """How a student is made smaller than its teacher."""

    preset: Preset | None = None
    """A row of the papers' tables: `b-*` removes blocks as in BK-SDM, `koala-*` as in KOALA, `c-*` narrows every
    stage."""
    width: PositiveFloat | Annotated[tuple[Channels, ...], Field(strict=False)] | None = None
    """A fraction of the teacher's channels, or the channels of every stage."""
    keep: dict[str, Indices] | None = None
    """Indices of the layers to keep, for each list of layers; lists that are not named are kept whole."""
    depth: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a transformer's layers to keep; the layers with the lowest block influence over cached latents are
    removed."""
    target: TargetSettings | None = None
    """Instead of a width or a depth: the largest student that costs no more than this."""
    importance: Importance = "weight_norm"
    """How the channels to keep are chosen: by the norm of the weights that write them, by their activations over cached
    latents, or by how much the teacher's error would change without them (first order)."""
    weights: Literal["teacher", "random"] = "teacher"
    """`teacher`: inherit the kept layers and channels. `random`: random initialisation."""

    @field_validator("width")
    @classmethod
    def _check_width(cls, width: float | tuple[int, ...] | None) -> float | tuple[int, ...] | None:
        if isinstance(width, float | int) and not 0 < width <= 1:
            raise ValueError(
                f"a fraction of the teacher's channels is above 0 and at most 1, but width is {width}; "
                "give the channels of every stage as a list, such as [160, 320, 640, 640]"
            )
        return width

    @model_validator(mode="after")
    def _check_one_choice(self) -> StudentSettings:
        chosen = [n for n in ("preset", "width", "keep", "depth", "target") if getattr(self, n) is not None]
        if not chosen:
            raise ValueError(
                "give a preset, a width, a depth, a target or the layers to keep; without any of them the student "
                "equals its teacher"
            )
        narrows = self.preset in get_args(WidthPreset)
        if narrows and self.width is not None:
            raise ValueError(f"preset {self.preset!r} sets the width already; leave out one of the two")
        if self.target and (narrows or {"width", "depth"} & set(chosen)):
            raise ValueError("target chooses the width or the depth; leave out one of the two")
        layers = [n for n in chosen if n in ("preset", "keep", "depth") and not (n == "preset" and narrows)]
        if len(layers) > 1:
            raise ValueError(f"{' and '.join(layers)} each choose the layers to keep; leave out all but one")
        narrows = narrows or self.width is not None or self.target is not None
        if self.importance != "weight_norm" and not (narrows and self.weights == "teacher"):
            raise ValueError(
                f"importance {self.importance!r} chooses channels to inherit from the teacher; "
                "give a width and weights: teacher, or leave importance out"
            )
        return self


class VariantSettings(Settings):
    """The changes of one student to the recipe's `student` and `distill`, and its teacher."""

    teacher: str | None = None
    """A variant above this one, whose student replaces the pipeline as the teacher: this one is derived from it and
    learns from it."""
    student: dict[str, Any] = Field(default_factory=dict)
    distill: dict[str, Any] = Field(default_factory=dict)
