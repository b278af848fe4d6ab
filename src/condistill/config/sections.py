"""What can be set: the sections of a recipe, typed and frozen. Defaults are the paper's, or a comment says otherwise.

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
    PositiveInt,
    field_validator,
    model_validator,
)

Probability = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
MINIATURE = "miniature"
"""The name that stands for the embedded teacher, its captions and its classifier."""

BlockPreset = Literal["b-base", "b-small", "b-tiny", "koala-1b", "koala-700m"]
WidthPreset = Literal["c-base", "c-small", "c-tiny", "c-micro"]
Importance = Literal["weight_norm", "activation", "taylor"]
Preset = Literal[BlockPreset, WidthPreset]


class Settings(BaseModel):
    """Frozen; an unknown key is an error; `"3"` is not 3."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class TeacherSettings(Settings):
    pipeline: str = Field(min_length=1)
    """A diffusers pipeline directory, a hub name, or `miniature`."""
    family: str = "auto"
    """A registered teacher family; `auto`: found from the pipeline's class."""
    revision: str | None = None
    variant: str | None = None
    """File variant, such as `fp16`."""
    resolution: PositiveInt | None = None
    """Height and width of the images in pixels; empty: the pipeline's own."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, float16 on other GPUs, float32 on a CPU."""


class PromptSettings(Settings):
    files: Words = Field(min_length=1)
    """The text pool: txt, csv, jsonl or parquet; `miniature` for the captions of its world."""
    column: str | None = None
    """Where the prompts are in csv, jsonl and parquet; not needed where there is one column of text."""
    cached_files: Words = ()
    """Prompts to draw latents for; empty: the cache draws from `files`."""
    unseen_words: Words = ()
    """A prompt with one of these words is never cached."""
    unseen_files: Words = ()
    """Every prompt of these files is in the pool and never cached."""

    @property
    def every_file(self) -> tuple[str, ...]:
        """All that the pool is built from."""
        return self.files + self.cached_files + self.unseen_files


class CacheSettings(Settings):
    size: Annotated[int, Field(ge=0)] = 212_776  # the paper's LAION-Aesthetics 6.5+ prompts
    """Latents to draw; 0 where every student learns on paths from pure noise (`distill.path.start: noise`)."""
    num_inference_steps: PositiveInt = 25
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    batch_size: PositiveInt = 8
    shard_size: PositiveInt = 1024
    """Images per file. A fill that is interrupted goes on after the last whole file."""
    dtype: Literal["float16", "float32"] = "float16"


def _share(given: Any) -> Any:
    """`0.4x` is 0.4."""
    number = given.removesuffix("x") if isinstance(given, str) and given.endswith("x") else given
    try:
        return float(number)
    except (TypeError, ValueError):
        return given


Share = Annotated[float, BeforeValidator(_share), Field(gt=0, lt=1)]


class TargetSettings(Settings):
    """What the student may cost at most, as a share of its teacher: `0.4` or `0.4x`."""

    params: Share | None = None
    macs: Share | None = None
    """Multiply-accumulates of one forward."""
    latency: Share | None = None
    """Time of one forward of one sample on the device at hand, measured before training."""

    @model_validator(mode="after")
    def _one_at_least(self) -> TargetSettings:
        if not any((self.params, self.macs, self.latency)):
            raise ValueError("give params, macs or latency: the most that the student may cost, such as 0.5x")
        return self


class StudentSettings(Settings):
    """How a student is made smaller than its teacher."""

    preset: Preset | None = None
    """`b-*` removes blocks as in BK-SDM, `koala-*` as in KOALA, `c-*` narrows every stage: the papers' tables."""
    width: PositiveFloat | Annotated[tuple[PositiveInt, ...], Field(strict=False)] | None = None
    """A fraction of the teacher's channels, or the channels of every stage."""
    keep: dict[str, Indices] | None = None
    """The layers that are kept of each list of layers; lists that are not named are kept whole."""
    depth: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A share of a transformer's layers; those that change their input least over cached latents are left out."""
    target: TargetSettings | None = None
    """In place of a width or a depth: the largest student that costs no more is chosen."""
    importance: Importance = "weight_norm"
    """By what a width's channels are kept: the weights that write them, what they carry over cached latents, or how
    much the teacher's error would change without them (first order)."""
    weights: Literal["teacher", "random"] = "teacher"
    """`teacher`: inherit surviving layers and slice channels. `random`: start from noise."""

    @field_validator("width")
    @classmethod
    def _narrower(cls, width: float | tuple[int, ...] | None) -> float | tuple[int, ...] | None:
        if isinstance(width, float | int) and not 0 < width <= 1:
            raise ValueError(
                f"a fraction of the teacher's channels is above 0 and at most 1, this is {width}; "
                "give the channels of every stage as a list, such as [160, 320, 640, 640]"
            )
        return width

    @model_validator(mode="after")
    def _what_is_smaller(self) -> StudentSettings:
        given = [n for n in ("preset", "width", "keep", "depth", "target") if getattr(self, n) is not None]
        if not given:
            raise ValueError(
                "give a preset, a width, a depth, a target or the layers to keep; without any the student equals its "
                "teacher"
            )
        narrows = self.preset in get_args(WidthPreset)
        if narrows and self.width is not None:
            raise ValueError(f"preset {self.preset!r} sets the width already; leave out one of the two")
        if self.target and (narrows or {"width", "depth"} & set(given)):
            raise ValueError("target chooses the width or the depth; leave out one of the two")
        layers = [n for n in given if n in ("preset", "keep", "depth") and not (n == "preset" and narrows)]
        if len(layers) > 1:
            raise ValueError(f"{' and '.join(layers)} say which layers are kept; leave out all but one")
        narrows = narrows or self.width is not None or self.target is not None
        if self.importance != "weight_norm" and not (narrows and self.weights == "teacher"):
            raise ValueError(
                f"importance {self.importance!r} chooses the channels of a width that inherits; "
                "give a width and weights: teacher, or leave it out"
            )
        return self


class EvaluateSettings(Settings):
    prompts_per_split: PositiveInt = 100
    """Prompts drawn from the seen and from the unseen ones; `all` is both together."""
    num_inference_steps: PositiveInt | None = None
    """Empty: as the cache."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Empty: as the cache."""
    batch_size: PositiveInt = 8
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] = (0,)
    """One whole evaluation per seed, each with its own prompts and noise; the spread is over these."""
    classifier: Literal["none", "miniature"] = "none"
    """`miniature`: every attribute of every image is classified; only for the miniature's world."""
    grid: PositiveInt = 6
    """Prompts shown per split in the report."""


class VariantSettings(Settings):
    """What one student changes in the recipe's `student` and `distill`, and who teaches it."""

    teacher: str | None = None
    """A variant above this one, whose student takes the pipeline's place: this one is made of it and learns from it."""
    student: dict[str, Any] = Field(default_factory=dict)
    distill: dict[str, Any] = Field(default_factory=dict)
