"""What to do: the typed, frozen configuration tree. Defaults are the paper's unless a comment says otherwise.

"The paper" is Kim et al., Random Conditioning with Distillation for Data-Efficient Diffusion Model
Compression, CVPR 2025 (arXiv 2504.02011).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from condistill.errors import RecipeError, nearest
from condistill.tree import merge, override, read_yaml

Probability = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
MINIATURE = "miniature"
"""The name that stands for the embedded teacher, its captions and its judge."""

BlockPreset = Literal["b-base", "b-small", "b-tiny"]
WidthPreset = Literal["c-base", "c-small", "c-tiny", "c-micro"]
Preset = Literal[BlockPreset, WidthPreset]


class Settings(BaseModel):
    """Frozen; an unknown key is an error; `"3"` is not 3."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class TeacherSettings(Settings):
    pipeline: str = Field(min_length=1)
    """A diffusers pipeline directory, a hub name, or `miniature`."""
    family: Literal["auto", "stable_diffusion"] = "auto"
    revision: str | None = None
    variant: str | None = None
    """File variant, such as `fp16`."""
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
    size: PositiveInt = 212_776  # the paper's LAION-Aesthetics 6.5+ prompts
    num_inference_steps: PositiveInt = 25
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    batch_size: PositiveInt = 8
    shard_size: PositiveInt = 1024
    """Images per file. A fill that is interrupted goes on after the last whole file."""
    dtype: Literal["float16", "float32"] = "float16"


class StudentSettings(Settings):
    preset: Preset | None = None
    """`b-*` removes blocks as in BK-SDM, `c-*` narrows every stage: the rows of the paper's tables."""
    width: PositiveFloat | Annotated[tuple[PositiveInt, ...], Field(strict=False)] | None = None
    """A fraction of the teacher's channels, or the channels of every stage."""
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
    def _one_width(self) -> StudentSettings:
        if self.preset is None and self.width is None:
            raise ValueError("give a preset, a width or both; without either the student equals its teacher")
        if self.preset in get_args(WidthPreset) and self.width is not None:
            raise ValueError(f"preset {self.preset!r} sets the width already; leave out one of the two")
        return self


class Exponential(Settings):
    """p(u) = exp(-lambda (1 - u)): the paper's choice."""

    schedule: Literal["exponential"] = "exponential"
    lambda_: Annotated[float, Field(ge=0, alias="lambda")] = 5.0


class Sigmoid(Settings):
    """p(u) = 1 / (1 + exp(-slope (u - midpoint)))."""

    schedule: Literal["sigmoid"]
    slope: float = 20.0
    midpoint: Probability = 0.7


class Constant(Settings):
    """p(u) = probability."""

    schedule: Literal["constant"]
    probability: Probability = 1.0


class Never(Settings):
    """p(u) = 0: plain distillation."""

    schedule: Literal["none"]


RandomConditioningSettings = Annotated[Exponential | Sigmoid | Constant | Never, Field(discriminator="schedule")]


class DistillSettings(Settings):
    steps: PositiveInt = 400_000
    batch_size: PositiveInt = 256
    """Samples per optimiser step, over all processes and accumulation."""
    micro_batch_size: PositiveInt | None = None
    """Samples per forward on one device; empty: the whole share of the device at once."""
    learning_rate: PositiveFloat = 5e-5
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Probability = 0.9999
    """0 ships the last weights instead of their average."""
    random_conditioning: RandomConditioningSettings = Field(default_factory=Exponential)
    empty_prompt_probability: Probability = 0.1
    output_weight: Annotated[float, Field(ge=0)] = 1.0
    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    task_weight: Annotated[float, Field(ge=0)] = 0.0
    """MSE to the true noise, on samples that kept their prompt; off in the image-free setting."""
    output_weighting: Literal["native", "epsilon", "x0", "v", "min_snr"] = "native"
    """Space the output loss is measured in: `native`, the teacher's own, as in the paper; `x0` favours noisy steps."""
    x0_clip: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] | None = None
    """Smallest and largest weight of `output_weighting: x0`; empty: 0.1 and 10."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    checkpoint_every: PositiveInt = 500
    """Optimiser steps between checkpoints: what a power cut can cost."""
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50
    tracker: Literal["none", "tensorboard", "wandb"] = "none"

    @field_validator("random_conditioning", mode="before")
    @classmethod
    def _default_schedule(cls, given: Any) -> Any:
        return {"schedule": "exponential", **given} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _consistent(self) -> DistillSettings:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_steps and self.lr_scheduler == "constant":
            raise ValueError("lr_scheduler 'constant' has no warm-up; use 'constant_with_warmup'")
        if self.x0_clip is not None and (self.output_weighting != "x0" or self.x0_clip[0] > self.x0_clip[1]):
            raise ValueError("x0_clip is (smallest, largest) and goes with output_weighting 'x0' only")
        if self.output_weight == self.feature_weight == self.task_weight == 0:
            raise ValueError("every loss weight is 0: nothing would be learned")
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
    judge: Literal["none", "miniature"] = "none"
    """`miniature`: every attribute of every image is judged; only for the miniature's world."""
    grid: PositiveInt = 6
    """Prompts shown per split in the report."""


class VariantSettings(Settings):
    """What one student changes in the recipe's `student` and `distill`."""

    student: dict[str, Any] = Field(default_factory=dict)
    distill: dict[str, Any] = Field(default_factory=dict)


def _student_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name == "teacher":
        raise ValueError(f"{name!r} cannot name a student: use a-z, 0-9, _ and -, and not 'teacher'")
    return name


class Recipe(Settings):
    """Everything a run depends on; load one with `Recipe.load`."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    teacher: TeacherSettings
    prompts: PromptSettings
    cache: CacheSettings = Field(default_factory=CacheSettings)
    student: StudentSettings
    distill: DistillSettings = Field(default_factory=DistillSettings)
    variants: dict[Annotated[str, AfterValidator(_student_name)], VariantSettings] = Field(
        default_factory=lambda: {"random_conditioning": VariantSettings()}, min_length=1
    )
    """Students to distil, by name, each with what it changes in `student` and `distill`."""
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    def variant(self, name: str) -> tuple[StudentSettings, DistillSettings]:
        """The student and the distillation of one variant: the recipe's, with the variant's changes."""
        changes = self.variants[name]
        student = merge(self.student.model_dump(by_alias=True), changes.student)
        distill = merge(self.distill.model_dump(by_alias=True), changes.distill)
        return StudentSettings.model_validate(student), DistillSettings.model_validate(distill)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe file.

        Args:
            path: a YAML file; file names in it, and in overrides, are taken from the folder it lies in.
            overrides: `key=value` with dotted keys, such as `distill.steps=1000`.

        Raises:
            RecipeError: lists every mistake with its line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(f"there is no recipe at {path}; `condistill init` writes one") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
        return cls.parse(text, overrides, source=str(path), folder=path.parent)

    @classmethod
    def parse(
        cls, text: str, overrides: Sequence[str] = (), *, source: str = "recipe", folder: Path | None = None
    ) -> Recipe:
        """Read a recipe from YAML text; see `load`."""
        data, places = read_yaml(text, source)
        if not isinstance(data, dict):
            raise RecipeError(f"{source} must be a mapping with the keys {', '.join(cls.model_fields)}")
        for change in overrides:
            override(data, places, change)
        if folder is not None:
            _resolve_files(data, folder)
        return cls.from_dict(data, source=source, places=places)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, source: str = "recipe", places: Mapping[str, str] | None = None
    ) -> Recipe:
        """Validate a mapping; all mistakes at once, each with where `places` says its dotted key was given."""
        data, places = dict(data), places or {}
        mistakes = [*_mistakes(cls, data, places).values(), *_variant_mistakes(data, places)]
        if mistakes:
            raise RecipeError(f"{source} has {len(mistakes)} mistake(s):\n" + "\n".join(mistakes))
        return cls.model_validate(data)

    def to_yaml(self) -> str:
        """The resolved recipe: every setting, defaults included."""
        text: str = yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
        return text


def _resolve_files(data: dict[str, Any], folder: Path) -> None:
    """File names are relative to the recipe, so is a teacher that is a folder there; the run keeps them absolute."""

    def resolve(name: Any) -> Any:
        return str((folder / name).resolve()) if isinstance(name, str) and name != MINIATURE else name

    prompts = data.get("prompts")
    if isinstance(prompts, dict):
        for key in ("files", "cached_files", "unseen_files"):
            if isinstance(prompts.get(key), list):
                prompts[key] = [resolve(name) for name in prompts[key]]
    teacher = data.get("teacher")
    if isinstance(teacher, dict) and isinstance(teacher.get("pipeline"), str):
        local = folder / teacher["pipeline"]
        if teacher["pipeline"] != MINIATURE and (local.is_dir() or teacher["pipeline"].startswith((".", "/"))):
            teacher["pipeline"] = str(local.resolve())


_SETTINGS: dict[Any, type[Settings]] = {
    "teacher": TeacherSettings,
    "prompts": PromptSettings,
    "cache": CacheSettings,
    "student": StudentSettings,
    "distill": DistillSettings,
    "evaluate": EvaluateSettings,
    "exponential": Exponential,
    "sigmoid": Sigmoid,
    "constant": Constant,
    "none": Never,
}


def _mistakes(
    model: type[Settings], data: Mapping[str, Any], places: Mapping[str, str], at: tuple[str, ...] = ()
) -> dict[tuple[Any, str], str]:
    """A line for every mistake, by its location and message; `at` is where `data` stands in the recipe."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        return {(m["loc"], m["msg"]): _tell(m, data, places, at) for m in error.errors()}
    return {}


def _variant_mistakes(data: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    """Mistakes that a variant brings into a section; those of the section itself are told there."""
    variants = data.get("variants")
    for name, changes in variants.items() if isinstance(variants, Mapping) else ():
        for section in ("student", "distill") if isinstance(changes, Mapping) else ():
            base, change = data.get(section, {}), changes.get(section)
            if isinstance(base, Mapping) and isinstance(change, Mapping):
                known = _mistakes(_SETTINGS[section], base, places)
                found = _mistakes(_SETTINGS[section], merge(base, change), places, ("variants", str(name), section))
                yield from (line for key, line in found.items() if key not in known)


def _valid_names(location: tuple[Any, ...]) -> list[str]:
    """Names of the settings that may stand where the last part of a location stands."""
    match location:
        case (_,):
            model: type[Settings] = Recipe
        case ("variants", _, _):
            model = VariantSettings
        case _:
            model = _SETTINGS[location[-2]]
    return [field.alias or name for name, field in model.model_fields.items()]


def _tell(mistake: Any, data: Any, places: Mapping[str, str], at: tuple[str, ...]) -> str:
    """One line: the place of a mistake, what was given, what is allowed."""
    kind, location = mistake["type"], mistake["loc"]
    keys = [*at]
    for part in location:  # it also names members of unions, which the recipe does not hold
        if (isinstance(data, Mapping) and part in data) or (isinstance(data, list | tuple) and isinstance(part, int)):
            keys.append(str(part))
            data = data[part]
    if kind == "missing":
        keys.append(str(location[-1]))
    elif kind == "union_tag_invalid":
        keys.append("schedule")
    key = place = ".".join(keys)
    while key and key not in places:
        key = key.rpartition(".")[0]
    where = f"  {places[key]}: {place}" if key else f"  {place or 'recipe'}"
    if kind == "extra_forbidden":
        return f"{where} is not a setting{nearest(str(location[-1]), _valid_names((*at, *location)))}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "union_tag_invalid":
        return f"{where}: {mistake['ctx']['tag']!r} is unknown; use {mistake['ctx']['expected_tags']}"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    message = re.sub(r"valid dictionary( or .*)?", "mapping", message)
    message = re.sub(r"(valid )?tuple", "list", message)
    given = "" if isinstance(mistake["input"], dict | BaseModel) else f" (given: {mistake['input']!r})"
    return f"{where}: {message}{given}"
