"""The recipe of a run: reading it from YAML, and checking it. All mistakes are reported at once, with their lines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from condistill.config.distill import ConsistencySettings, DistillSettings
from condistill.config.evaluate import EvaluateSettings
from condistill.config.messages import listed, mistakes, variant_mistakes
from condistill.config.sections import (
    MAX_VARIANTS,
    MINIATURE,
    SHIPPED_CONFIGS,
    CacheSettings,
    PromptSettings,
    Seed,
    Settings,
    StudentSettings,
    TeacherSettings,
    VariantSettings,
)
from condistill.config.yaml_text import MAX_CHARACTERS, check_data, load_yaml
from condistill.config.yaml_tree import merge, override, write_yaml
from condistill.errors import CondistillError, RecipeError, nearest, system_message
from condistill.utils.home import resolve_path
from condistill.utils.registry import load_plugins
from condistill.utils.text import shorten

TEACHER = "teacher"
"""The name of the teacher among the models of a run."""
QUICK_LABEL = "quick run: a test of the set-up, not a student to use"
"""The label of every result of a recipe with `quick`."""
SPLITS = ("seen", "unseen", "all")
"""The splits that prompts are evaluated in."""


MAX_NAME = 80
"""Characters of a student's name, which is a part of file names."""


def is_student_name(name: str) -> bool:
    """Return whether a student can have this name."""
    return bool(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)) and len(name) <= MAX_NAME and name != TEACHER


def _check_student_name(name: str) -> str:
    if not is_student_name(name):
        raise ValueError(
            f"{shorten(name)!r} cannot name a student: use a-z, 0-9, _ and -, at most {MAX_NAME} characters, and not "
            f"{TEACHER!r}"
        )
    return name


class Recipe(Settings):
    """Everything a run depends on; load one with `Recipe.load`."""

    seed: Seed = 0
    quick: bool = False
    """Whether this is a test of the set-up: every result is labelled as no student to use."""
    teacher: TeacherSettings
    prompts: PromptSettings
    cache: CacheSettings = Field(default_factory=CacheSettings)
    student: StudentSettings
    distill: DistillSettings = Field(default_factory=DistillSettings)
    variants: dict[Annotated[str, AfterValidator(_check_student_name)], VariantSettings] = Field(
        default_factory=lambda: {"random_conditioning": VariantSettings()}, min_length=1, max_length=MAX_VARIANTS
    )
    """Students to distil, by name, each with its changes to `student` and `distill`."""
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    @property
    def cache_is_idle(self) -> bool:
        """Whether the cache has latents that no student is trained on or chosen by."""
        settings = [self.variant(name) for name in self.variants]
        # a target is met by depth in a transformer, and the recipe does not know the teacher's architecture
        chosen = (bool(s.depth or s.target) or s.importance != "weight_norm" for s, _ in settings)
        return self.cache.size > 0 and not any(chosen) and not any(d.uses_cache for _, d in settings)

    @model_validator(mode="after")
    def _check_variants(self) -> Recipe:
        self._check_teachers()
        try:
            variants = {name: self.variant(name) for name in self.variants}
        except ValidationError:
            return self  # `variant_mistakes` reports it with the variant's name
        self._check_cache(variants)
        distilled = {name: settings for name, (_, settings) in variants.items()}
        for name, settings in distilled.items():
            self._check_sources(name, settings)
            self._check_lineage(name, distilled)
            self._check_evaluation(name, settings)
        return self

    def _check_teachers(self) -> None:
        """Check that the teacher of every variant is a variant above it."""
        for number, (name, settings) in enumerate(self.variants.items()):
            above = list(self.variants)[:number]
            if settings.teacher is not None and settings.teacher not in above:
                raise ValueError(
                    f"variants.{name}.teacher is {settings.teacher!r}, and it must be a variant above "
                    f"{name!r}: {', '.join(above) or 'there is none'}"
                )

    def _check_cache(self, variants: Mapping[str, tuple[StudentSettings, DistillSettings]]) -> None:
        """Check that there is a cache if a variant needs one."""
        if self.cache.size:
            return
        if users := [name for name, (_, settings) in variants.items() if settings.uses_cache]:
            raise ValueError(
                f"cache.size is 0, and {', '.join(users)} learns from cached latents; "
                "set cache.size above 0, or use `distill.path: {start: noise}`, which needs no cache"
            )
        if measured := [name for name, (student, _) in variants.items() if student.importance != "weight_norm"]:
            raise ValueError(
                f"cache.size is 0, and student.importance of {', '.join(measured)} is measured over cached latents; "
                "set it to weight_norm, or set cache.size above 0"
            )

    def _check_sources(self, name: str, settings: DistillSettings) -> None:
        """Check that the source weights of a variant have the names of the pool's files."""
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

    def _check_lineage(self, name: str, distilled: Mapping[str, DistillSettings]) -> None:
        """Check that a student can learn from the student that is its teacher."""
        settings, teachers = distilled[name], [*self.teachers(name)]
        with_guidance = next((teacher for teacher in teachers if distilled[teacher].guidance_distillation), None)
        allowed = distilled[with_guidance].guidance_range if with_guidance else None
        chosen = settings.guidance_range
        if allowed and not (chosen and allowed[0] <= chosen[0] < chosen[1] <= allowed[1]):
            raise ValueError(
                f"variants.{name}: its teacher {with_guidance!r} takes guidance scales of {list(allowed)} as an input, "
                f"so the student must as well; set distill.guidance_distillation to {list(allowed)} or a part of it"
            )
        guided_again = settings.guidance_distillation or (settings.path and settings.path.guidance_scale != 1)
        if with_guidance and not allowed and guided_again:
            raise ValueError(
                f"variants.{name}: its teacher {with_guidance!r} is guidance-distilled already; "
                "set distill.guidance_distillation to null and distill.path.guidance_scale to 1"
            )
        few_steps = next((found for teacher in teachers if (found := distilled[teacher].few_steps)), None)
        if isinstance(few_steps, ConsistencySettings):
            raise ValueError(
                f"variants.{name}: its teacher was trained with few_steps.method 'consistency', so it predicts where a "
                "path ends but not its next state; choose the teacher of that variant"
            )
        if few_steps is None:
            return
        known = few_steps.num_inference_steps
        if settings.few_steps is None or settings.few_steps.teacher_solver_steps != known:
            raise ValueError(
                f"variants.{name}: its teacher knows {known} steps only, so distill.few_steps needs "
                f"num_inference_steps x teacher_steps = {known}, or solver_steps = {known}"
            )

    def _check_evaluation(self, name: str, settings: DistillSettings) -> None:
        """Check that a student can sample with the guidance scale of the evaluation."""
        scale, allowed = self.evaluate.guidance_scale, settings.guidance_range
        if scale is not None and allowed and settings.nearest_guidance(scale) != scale:
            raise ValueError(
                f"evaluate.guidance_scale is {scale:g}, and {name} takes guidance scales of {list(allowed)}; choose "
                "one of these, or null for the one nearest to cache.guidance_scale"
            )

    def teachers(self, name: str) -> Iterator[str]:
        """Yield the variant that teaches a variant, then the one that teaches that one, and so on."""
        while (teacher := self.variants[name].teacher) is not None:
            yield teacher
            name = teacher

    def variant(self, name: str) -> tuple[StudentSettings, DistillSettings]:
        """Return the settings of one variant: the recipe's, with the variant's changes."""
        changes = self.variants[name]
        student = merge(self.student.model_dump(by_alias=True), changes.student)
        distill = merge(self.distill.model_dump(by_alias=True), changes.distill)
        return StudentSettings.model_validate(student), DistillSettings.model_validate(distill)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe file.

        Args:
            path: a YAML file; file names in it, and in overrides, are relative to its folder.
            overrides: `key=value` with dotted keys, such as `distill.steps=1000`.

        Raises:
            RecipeError: lists every mistake with its line.
        """
        path = Path(path)
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                text = file.read(4 * MAX_CHARACTERS + 1).decode("utf-8")  # more is refused, and some files never end
        except FileNotFoundError:
            raise RecipeError(f"there is no recipe at {path}; `condistill init` writes one") from None
        except OSError as error:
            raise RecipeError(f"the recipe cannot be read: {system_message(error)}") from error
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise RecipeError(
                f"{path}, line {line}: byte {error.start} is not UTF-8; save the recipe as UTF-8"
            ) from error
        return cls.parse(text, overrides, source=str(path), folder=path.parent)

    @classmethod
    def parse(
        cls, text: str, overrides: Sequence[str] = (), *, source: str = "recipe", folder: Path | None = None
    ) -> Recipe:
        """Read a recipe from YAML text; see `load`."""
        data, places = load_yaml(text, source)
        if not isinstance(data, dict):
            raise RecipeError(f"{source} must be a mapping with the keys {', '.join(cls.model_fields)}")
        for change in overrides:
            override(data, places, change)
        _check_data(data, places, source)
        if folder is not None:
            try:
                resolve_files(data, folder)
            except (OSError, RuntimeError) as error:  # a RuntimeError is a circle of links, or an unknown home
                raise RecipeError(f"{source}: a file cannot be found: {system_message(error)}; correct it") from error
        return cls.from_dict(data, source=source, places=places)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, source: str = "recipe", places: Mapping[str, str] | None = None
    ) -> Recipe:
        """Return the recipe of a mapping.

        Args:
            places: where each dotted key was given, such as `line 3`, for messages.

        Raises:
            RecipeError: lists every mistake with its place.
        """
        load_plugins()
        data, places = dict(data), places or {}
        _check_data(data, places, source)
        found = [*mistakes(cls, data, places).values(), *variant_mistakes(data, places)]
        if found:
            raise RecipeError(listed(found, source))
        return cls.model_validate(data)

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every setting, defaults included."""
        return write_yaml(self.model_dump(mode="json", by_alias=True))


def _open_at_once(name: str, flags: int) -> int:
    """Open a file; unlike `os.open`, a pipe to which no program writes is empty instead of waiting for one."""
    descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(descriptor, True)
    return descriptor


def _check_data(data: Mapping[str, Any], places: Mapping[str, str], source: str) -> None:
    """Refuse values that no setting can have.

    Raises:
        RecipeError: lists them with their places.
    """
    if found := [*check_data(data, places)]:
        raise RecipeError(listed(found, source))


_FILE_LISTS = {"prompts": ("files", "cached_files", "unseen_files"), "evaluate": ("prompt_files",)}
"""Settings that list files, by section."""
_WORD_FILE = ".txt"
"""The ending of an entry of `evaluate.keywords` that is a file of words."""


def resolve_files(data: dict[str, Any], folder: Path) -> None:
    """Make file names absolute, and models that are on the disk; they are relative to the recipe's folder.

    Raises:
        CondistillError: a path starts with `~NAME`, and there is no such user.
    """
    for section, keys in _FILE_LISTS.items():
        settings = data.get(section)
        if isinstance(settings, dict):
            for key in keys:
                if isinstance(settings.get(key), list):
                    settings[key] = [resolve_file(name, folder) for name in settings[key]]
    if isinstance(data.get("evaluate"), dict):
        _resolve_evaluation(data["evaluate"], folder)
    teacher = data.get("teacher")
    if isinstance(teacher, dict):
        if "pipeline" in teacher:
            teacher["pipeline"] = _resolve_model(teacher["pipeline"], folder)
        for key in ("vae", "scheduler"):
            if key in teacher:
                teacher[key] = resolve_file(teacher[key], folder)
        config = teacher.get("config")
        if isinstance(config, str) and config not in SHIPPED_CONFIGS:
            teacher["config"] = resolve_file(config, folder)
        loras = teacher.get("loras")
        for lora in loras if isinstance(loras, list) else ():
            if isinstance(lora, dict) and "path" in lora:
                lora["path"] = resolve_file(lora["path"], folder)


def _resolve_evaluation(evaluate: dict[str, Any], folder: Path) -> None:
    """Make the names of networks, reference images and files of words absolute."""
    networks, keywords = evaluate.get("networks"), evaluate.get("keywords")
    if isinstance(networks, dict):
        evaluate["networks"] = {name: _resolve_model(source, folder) for name, source in networks.items()}
    if "reference" in evaluate:
        evaluate["reference"] = resolve_file(evaluate["reference"], folder)
    if isinstance(keywords, list):
        is_file = [isinstance(entry, str) and entry.lower().endswith(_WORD_FILE) for entry in keywords]
        evaluate["keywords"] = [
            resolve_file(entry, folder) if file else entry for entry, file in zip(keywords, is_file, strict=True)
        ]


def _resolve_model(name: Any, folder: Path) -> Any:
    """Return the absolute path of a model that is on the disk; a hub name is unchanged."""
    is_name = isinstance(name, str) and name
    if is_name and (name.startswith((".", "/", "~")) or os.path.exists(folder / name)):  # noqa: PTH110 - never raises
        return resolve_file(name, folder)
    return name


def resolve_file(name: Any, folder: Path) -> Any:
    """Return the absolute path of a file that a recipe in `folder` names; another value than a name is unchanged.

    Raises:
        CondistillError: the path starts with `~NAME`, and there is no such user.
    """
    return str(resolve_path(name, folder)) if isinstance(name, str) and name and name != MINIATURE else name


def check_sources(weights: Mapping[str, float], names: tuple[str, ...]) -> None:
    """Check that every source has a weight and every weight a source.

    Raises:
        CondistillError: names the first that has not.
    """
    for name in weights:
        if name not in names:
            near = nearest(name, names) if names else "; it was built from no files"
            raise CondistillError(f"source_weights names {name!r}, which is not a file of the prompt pool{near}")
    if missing := [name for name in names if name not in weights]:
        raise CondistillError(
            f"source_weights leaves out {', '.join(map(repr, missing))}; give every file of the prompt pool a weight"
        )
