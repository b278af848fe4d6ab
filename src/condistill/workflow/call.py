"""`compress` for Python code: with a recipe, or with a pipeline and prompts.

A pipeline and prompts become a recipe. Its sizes do not depend on the speed of the device, so that the same call
resumes a run. What is passed as objects is kept in the run directory, so that the command line can resume it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import torch
from diffusers import DiffusionPipeline
from rich.console import Console

from condistill.config.recipe import Recipe, resolve_files
from condistill.config.sections import MINIATURE, StudentSettings, TeacherSettings
from condistill.config.yaml_tree import merge
from condistill.errors import CondistillError
from condistill.prompts.pool import count_prompts
from condistill.prompts.readers import EXTENSIONS
from condistill.prompts.text import clean_prompt
from condistill.students.choice import StudentChoice, student_settings
from condistill.teachers.defaults import NO_GUIDANCE, SAMPLING_NAME, Origin
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.utils.home import resolve_path
from condistill.utils.quiet import quiet_libraries
from condistill.utils.registry import load_plugins
from condistill.workflow.compress import check_stage, run_recipe
from condistill.workflow.given import Given, check_pipeline, configs_of
from condistill.workflow.preflight import preflight

Prompts: TypeAlias = Iterable[str] | str | Path | Sequence[Path]
"""Texts, or the path of a prompt file, or the paths of several."""
_MOST_COUNTED = 1_000_000
_MOST_CACHED = 10_000
_SHORT = {"steps": "distill.steps", "batch_size": "distill.batch_size", "cache_size": "cache.size"}
"""Arguments that stand for settings."""
_FREE = {"dtype", "family", "resolution"}
"""Settings of the teacher that a pipeline does not fix."""


@overload
def compress(
    teacher: Recipe, out: str | Path, *, until: str = ..., update: bool = ..., console: Console | None = ...
) -> Path: ...


@overload
def compress(
    teacher: DiffusionPipeline | str | Path,
    out: str | Path,
    *,
    prompts: Prompts,
    student: StudentChoice | None = ...,
    steps: int | None = ...,
    batch_size: int | None = ...,
    cache_size: int | None = ...,
    settings: Mapping[str, Any] | None = ...,
    until: str = ...,
    update: bool = ...,
    console: Console | None = ...,
) -> Path: ...


def compress(
    teacher: Recipe | DiffusionPipeline | str | Path,
    out: str | Path,
    *,
    prompts: Prompts | None = None,
    student: StudentChoice | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    cache_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    until: str = "report",
    update: bool = False,
    console: Console | None = None,
) -> Path:
    """Turn a teacher and prompts into a student. Finished stages are not repeated, so the same call resumes a run.

    With a recipe, or with a pipeline, which is saved once in `<out>/teacher` and does not change::

        compress(Recipe.load("recipe.yaml"), "runs/mine")
        compress(pipeline, prompts=prompts, student="b-small", out="runs/mine")

    Args:
        teacher: a recipe; a pipeline of diffusers; or its directory, its hub name, or one safetensors file.
        out: the run directory; students are in `<out>/pipelines`, by default `random_conditioning`.
        prompts: texts, or the path of a prompt file, or the paths of several.
        student: as in `derive_student`. Default: "b-base" for a U-Net, half of the layers for a transformer.
        steps: `distill.steps` of a recipe. Default: 50,000, those of BK-SDM; `condistill init` chooses for a device.
        batch_size: `distill.batch_size`.
        cache_size: `cache.size`. Default: half of the prompts, and 10,000 at most.
        settings: further settings of a recipe by dotted name, such as `{"distill.mixed_precision": "bf16"}`.
        until: name of the last stage to run.
        update: where inputs changed since results were made, move those results to a dated folder, and make them again.

    Returns:
        `out`, which contains `report.html` and `metrics.json` after the last stage.

    Raises:
        CondistillError: says what was given, what is allowed and what to do.
    """
    chosen = {"steps": steps, "batch_size": batch_size, "cache_size": cache_size}
    if isinstance(teacher, Recipe):
        _refuse({"prompts": prompts, "student": student, **chosen, "settings": settings})
        return run_recipe(teacher, Path(out), until=until, update=update, console=console)
    check_stage(until)
    with quiet_libraries():
        load_plugins()
        given, recipe, skeleton = _resolve(teacher, Path(out), prompts, student, _changes(settings, chosen))
    return _run(given, recipe, skeleton, Path(out), until=until, update=update, console=console)


def _run(
    given: Given,
    recipe: Recipe,
    skeleton: Skeleton,
    out: Path,
    *,
    until: str,
    update: bool,
    console: Console | None,
) -> Path:
    """Run a recipe of objects, which are kept in the run directory; prompts of a refused call are not."""
    is_known = given.prompts is None or Path(given.prompt_file(out)).is_file()
    try:
        return run_recipe(
            recipe,
            out,
            until=until,
            update=update,
            console=console,
            begin=lambda run: given.keep(run, skeleton, update=update),
        )
    except CondistillError:
        if not is_known:
            given.forget(out)
        raise


def _refuse(arguments: Mapping[str, Any]) -> None:
    """Refuse what a recipe has already.

    Raises:
        CondistillError: names the arguments that are given.
    """
    if extra := [name for name, value in arguments.items() if value is not None]:
        raise CondistillError(
            f"compress got a recipe and {', '.join(extra)}, which a recipe has already; give them to "
            "Recipe.load(path, [...]) or leave them out"
        )


def _resolve(
    teacher: DiffusionPipeline | str | Path,
    out: Path,
    prompts: Prompts | None,
    student: StudentChoice | None,
    changes: Mapping[str, Any],
) -> tuple[Given, Recipe, Skeleton]:
    """Return the objects among the arguments, the recipe of the call, and the teacher on the meta device."""
    given = _given(teacher, prompts)
    if given.pipeline is not None and (fixed := sorted({*_section(changes, "teacher")} - _FREE)):
        raise CondistillError(
            f"settings has teacher.{fixed[0]}, and the teacher is the pipeline that was given; change that pipeline, "
            "or give the path of one"
        )
    files = [given.prompt_file(out)] if given.prompts is not None else _files(cast("Prompts", prompts))
    count = _count(given, files, _section(changes, "prompts").get("column"))
    skeleton = _skeleton(teacher, changes)
    usual = _usual(skeleton, count, _section(changes, "distill").get("batch_size"))
    pipeline = _location(teacher) if isinstance(teacher, str | Path) else given.teacher(out)
    base = merge(usual, {"teacher": {"pipeline": pipeline}, "prompts": {"files": files}})
    return given, _first_accepted(base, changes, student, skeleton), skeleton


def _given(teacher: DiffusionPipeline | str | Path, prompts: Prompts | None) -> Given:
    """Return the objects among the arguments, after the checks that read no file of the teacher."""
    if prompts is None:
        raise CondistillError("compress needs prompts: a list of texts, or the path of a prompt file")
    texts = _texts(prompts)
    if isinstance(teacher, str | Path):
        return Given(prompts=texts)
    if not isinstance(teacher, DiffusionPipeline):
        raise CondistillError(
            f"compress got a {type(teacher).__name__}; give a recipe, a pipeline of diffusers, or the directory or hub "
            "name of one"
        )
    check_pipeline(teacher)
    return Given(teacher, texts)


def _origin(pipeline: DiffusionPipeline) -> Origin:
    """Return where a pipeline was loaded from, which may say how it is sampled."""
    name = str(pipeline.config.get("_name_or_path") or "")
    if not Path(name).is_dir():
        return Origin((name,))
    file = Path(name) / SAMPLING_NAME
    return Origin((Path(name).resolve().name,), file if file.is_file() else None)


def _skeleton(teacher: DiffusionPipeline | str | Path, changes: Mapping[str, Any]) -> Skeleton:
    """Return the teacher on the meta device, with the settings of the call, such as its resolution."""
    if isinstance(teacher, str | Path):
        return teacher_skeleton(_teacher_settings(_location(teacher), changes))
    with configs_of(teacher) as folder:
        skeleton = teacher_skeleton(_teacher_settings(str(folder), changes))
    skeleton.family.origin = _origin(teacher)
    return skeleton


def _teacher_settings(pipeline: str, changes: Mapping[str, Any]) -> TeacherSettings:
    """Return the section `teacher` of the recipe, before the rest of it is known."""
    others = {"prompts": {"files": [MINIATURE]}, "student": {"width": 0.5}}
    given = changes.get("teacher", {})
    section = {"pipeline": pipeline, **given} if isinstance(given, Mapping) else given
    return _checked({"teacher": section, **others}).teacher


def _checked(data: dict[str, Any]) -> Recipe:
    """Return the recipe of the arguments; paths in them start at the working directory.

    Raises:
        RecipeError: lists every mistake.
    """
    resolve_files(data, Path.cwd())
    return Recipe.from_dict(data, source="the arguments of compress")


def _location(teacher: str | Path) -> str:
    """Return a teacher's directory as an absolute path, or its hub name as it is."""
    name = str(teacher)
    is_directory = name.startswith((".", "/", "~")) or isinstance(teacher, Path) or Path(name).exists()
    return str(resolve_path(name)) if name != MINIATURE and is_directory else name


def _texts(prompts: Prompts) -> tuple[str, ...] | None:
    """Return the prompts that are given as texts; None if files are given.

    Raises:
        CondistillError: something is neither a text nor a path, or there is no text.
    """
    if isinstance(prompts, str | Path):
        return None
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, Path) for item in items):
        return None
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise CondistillError(
                f"prompts[{number}] is a {type(item).__name__}; give a list of texts, a path, or a list of paths"
            )
        if item.lower().endswith(EXTENSIONS) and Path(item).is_file():
            raise CondistillError(f"prompts[{number}] is the name of a file; give Path({item!r}) to read its prompts")
    if not any(clean_prompt(item)[0] for item in items):
        raise CondistillError("prompts has no text; give at least one prompt")
    return tuple(items)


def _files(prompts: Prompts) -> list[str]:
    """Return the absolute paths of prompt files."""
    paths = [prompts] if isinstance(prompts, str | Path) else cast("Sequence[Path]", prompts)
    return [str(path) if str(path) == MINIATURE else str(resolve_path(path)) for path in paths]


def _count(given: Given, files: Sequence[str], column: str | None) -> int:
    """Return how many different prompts there are; of those in files, a million at most are read."""
    if given.prompts is None:
        return count_prompts(files, column=column, limit=_MOST_COUNTED).kept
    return len({text for prompt in given.prompts if (text := clean_prompt(prompt)[0])})


def _changes(settings: Mapping[str, Any] | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a call as nested mappings.

    Args:
        settings: by dotted name.
        chosen: the arguments that stand for settings; None where one is not given.

    Raises:
        CondistillError: two of them set the same.
    """
    given = dict(settings or {})
    for name, value in chosen.items():
        if value is None:
            continue
        if _SHORT[name] in given:
            raise CondistillError(f"compress got {name} and {_SHORT[name]!r} in settings; leave out one of the two")
        given[_SHORT[name]] = value
    nested: dict[str, Any] = {}
    for key, value in ((key, _plain_value(value)) for key, value in given.items()):
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise CondistillError(f"settings has a value for {parent!r} and one for {key!r}; leave out one of them")
        if last in place and not isinstance(value, Mapping):
            raise CondistillError(f"settings has a value for {key!r} and others inside it; leave out one of them")
        place[last] = merge(place.get(last) or {}, value) if isinstance(value, Mapping) else value
    return nested


def _plain_value(value: Any) -> Any:
    """Return a value as YAML would give it: paths are texts, and tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _section(changes: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the changes of one section; none where they are no mapping, which the recipe reports."""
    section = changes.get(name)
    return section if isinstance(section, Mapping) else {}


def _first_accepted(
    base: Mapping[str, Any], changes: Mapping[str, Any], student: StudentChoice | None, skeleton: Skeleton
) -> Recipe:
    """Return the recipe of a call: if it chooses no student, that of the first usual student that a run accepts.

    Raises:
        CondistillError: a run accepts none; the error is that of the first.
    """
    is_unet = skeleton.family.can_cut_width
    usual: tuple[StudentChoice, ...] = ("b-base", 0.5) if is_unet else (0.5,)
    refusals: list[CondistillError] = []
    for choice in (student,) if student is not None or "student" in changes else usual:
        chosen = {} if choice is None else _plain(student_settings(choice, can_cut_width=is_unet))
        recipe = _checked(merge(merge(base, {"student": chosen}), changes))
        try:
            preflight(recipe, skeleton)
        except CondistillError as error:
            refusals.append(error)
        else:
            return recipe
    raise refusals[0]


def _plain(student: StudentSettings) -> dict[str, Any]:
    return student.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _usual(skeleton: Skeleton, prompts: int, batch_size: Any) -> dict[str, Any]:
    """Return the usual settings for a teacher and a number of prompts; their sizes do not depend on the device.

    Args:
        batch_size: that of the call, whose micro-batches must divide it.
    """
    guidance, sampling = skeleton.family.guidance, skeleton.family.default_sampling()
    mode = guidance.mode(skeleton.family.denoiser.config)
    batch = batch_size if isinstance(batch_size, int) and batch_size > 0 else 256
    scales = list(guidance.scale_range) if mode == "embedded" and guidance.scale_range else None
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {
        "cache": {
            "size": min(_MOST_CACHED, max(prompts // 2, 1)),
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": NO_GUIDANCE if mode == "none" else sampling.guidance_scale,
        },
        "distill": {
            "steps": 50_000,
            "micro_batch_size": next(size for size in range(8, 0, -1) if batch % size == 0),
            "mixed_precision": "bf16" if has_bf16 else "no",
            "gradient_checkpointing": True,
            "guidance_distillation": scales,
            "logging": {"checkpoint_every": 500},
        },
        "evaluate": {"prompts_per_split": min(100, prompts)},
    }
