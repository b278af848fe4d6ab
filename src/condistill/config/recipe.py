"""What to do: a recipe is read from YAML, and every mistake in it is told at once, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from condistill.config.distill import (
    ConsistencySettings,
    DistillSettings,
)
from condistill.config.messages import mistakes, variant_mistakes
from condistill.config.sections import (
    MINIATURE,
    CacheSettings,
    EvaluateSettings,
    PromptSettings,
    Settings,
    StudentSettings,
    TeacherSettings,
    VariantSettings,
)
from condistill.config.yaml_tree import merge, override, read_yaml
from condistill.errors import CondistillError, RecipeError, nearest
from condistill.utils.registry import load_plugins


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

    @property
    def cache_is_idle(self) -> bool:
        """Whether latents are drawn that no student learns from or is chosen by."""
        settings = [self.variant(name) for name in self.variants]
        # the target of a transformer is met by depth, and of which kind the teacher is no recipe says
        chosen = (bool(s.depth or s.target) or s.importance != "weight_norm" for s, _ in settings)
        return self.cache.size > 0 and not any(chosen) and not any(d.uses_cache for _, d in settings)

    @model_validator(mode="after")
    def _variants_fit(self) -> Recipe:
        for number, (name, settings) in enumerate(self.variants.items()):
            above = list(self.variants)[:number]
            if settings.teacher is not None and settings.teacher not in above:
                raise ValueError(
                    f"variants.{name}.teacher is {settings.teacher!r}, and it must be a variant above "
                    f"{name!r}: {', '.join(above) or 'there is none'}"
                )
        try:
            distilled = {name: self.variant(name)[1] for name in self.variants}
            measured = [name for name in self.variants if self.variant(name)[0].importance != "weight_norm"]
        except ValidationError:
            return self  # a mistake that is told with the variant's name
        users = [name for name, settings in distilled.items() if settings.uses_cache]
        if users and not self.cache.size:
            raise ValueError(
                f"cache.size is 0, and {', '.join(users)} learns from cached latents; "
                "only `distill.path: {start: noise}` does without"
            )
        if measured and not self.cache.size:
            raise ValueError(
                f"cache.size is 0, and student.importance of {', '.join(measured)} is measured over cached latents; "
                "set it to weight_norm, or cache some"
            )
        for name in self.variants:
            self._check_sources(name, distilled[name])
            self._check_chain(name, distilled)
            scale = self.evaluate.guidance_scale
            told = distilled[name].guidance_range
            if scale is not None and told and distilled[name].nearest_guidance(scale) != scale:
                raise ValueError(
                    f"evaluate.guidance_scale is {scale:g}, and {name} is told scales of "
                    f"{list(told)}; choose one of these, or null for the one nearest "
                    "to cache.guidance_scale"
                )
        return self

    def _check_sources(self, name: str, settings: DistillSettings) -> None:
        """Weights of prompt sources go by the names of their files."""
        choice = settings.conditioning.prompt_choice
        if choice is None or choice.source_weights is None:
            return
        files = [Path(file).name for file in dict.fromkeys(self.prompts.every_file)]
        if twice := next((file for file in files if files.count(file) > 1), None):
            raise ValueError(
                f"distill.conditioning.prompt_choice.source_weights of {name!r} needs different file names, and "
                f"two files are called {twice!r}; rename one"
            )
        try:
            check_sources(choice.source_weights, tuple(files))
        except CondistillError as error:
            raise ValueError(f"{name!r}: distill.conditioning.prompt_choice.{error}") from error

    def _check_chain(self, name: str, distilled: Mapping[str, DistillSettings]) -> None:
        """A student of a student must fit what that one can do."""
        mine, above = distilled[name], [*self.teachers(name)]
        folded = next((teacher for teacher in above if distilled[teacher].guidance_distillation), None)
        told = distilled[folded].guidance_range if folded else None
        if told and not (mine.guidance_range and told[0] <= mine.guidance_range[0] < mine.guidance_range[1] <= told[1]):
            raise ValueError(
                f"variants.{name}: its teacher {folded!r} is told guidance scales of {list(told)}, so it must be as "
                f"well; set distill.guidance_distillation to {list(told)} or a part of it"
            )
        if folded and not told and (mine.guidance_distillation or (mine.path and mine.path.guidance_scale != 1)):
            raise ValueError(
                f"variants.{name}: guidance is folded into its teacher {folded!r} already; "
                "set distill.guidance_distillation to null and distill.path.guidance_scale to 1"
            )
        few = next((few for teacher in above if (few := distilled[teacher].few_steps)), None)
        if isinstance(few, ConsistencySettings):
            raise ValueError(
                f"variants.{name}: its teacher learnt consistency, and knows where a path ends but not how it goes on; "
                "let the teacher of that one teach"
            )
        if few and (mine.few_steps is None or mine.few_steps.teacher_solver_steps != few.num_inference_steps):
            raise ValueError(
                f"variants.{name}: its teacher knows {few.num_inference_steps} steps only, so few_steps needs "
                f"num_inference_steps x teacher_steps = {few.num_inference_steps}, or as many solver_steps"
            )

    def teachers(self, name: str) -> Iterator[str]:
        """The variants that teach a variant, the nearest first."""
        while (teacher := self.variants[name].teacher) is not None:
            yield teacher
            name = teacher

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
        load_plugins()
        data, places = dict(data), places or {}
        found = [*mistakes(cls, data, places).values(), *variant_mistakes(data, places)]
        if found:
            raise RecipeError(f"{source} has {len(found)} mistake(s):\n" + "\n".join(found))
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


def check_sources(weights: Mapping[str, float], names: tuple[str, ...]) -> None:
    """Whether every source has a weight and every weight a source.

    Raises:
        CondistillError: names the first that has not.
    """
    for name in weights:
        if name not in names:
            near = nearest(name, names) if names else "; it was built from no files"
            raise CondistillError(f"source_weights names {name!r}, which is no file of the prompt pool{near}")
    if missing := [name for name in names if name not in weights]:
        raise CondistillError(
            f"source_weights leaves out {', '.join(map(repr, missing))}; give every file of the prompt pool a weight"
        )


TEACHER = "teacher"


SPLITS = ("seen", "unseen", "all")
