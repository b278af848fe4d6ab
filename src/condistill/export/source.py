"""What is exported: a finished pipeline, given as a directory or as a run and the name of a student."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from condistill.config.recipe import Recipe
from condistill.config.sections import MINIATURE
from condistill.errors import CondistillError, nearest
from condistill.miniature import weights_path
from condistill.run.directory import MARK_NAME, RECIPE_NAME
from condistill.teachers.defaults import SAMPLING_NAME
from condistill.teachers.files import INDEX_NAME, PipelineFiles
from condistill.teachers.hub import downloaded_snapshot
from condistill.teachers.locate import check_safetensors, read_index
from condistill.teachers.registry import family_of_pipeline
from condistill.utils.home import expand_home

_DENOISERS = ("transformer", "unet")
"""Names of the denoiser in pipelines of no teacher family."""
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
Config = Mapping[str, Any]
"""Of a model, as in its config.json."""


@dataclass(frozen=True)
class Shape:
    """What an exporter checks of a pipeline: its classes and the configs of its denoiser. A plan has it too."""

    pipeline_class: str
    denoiser_class: str
    denoiser: Config
    teacher: Config | None = None
    """Of the teacher's denoiser, from which a student was derived; None: unknown, or it is no student."""
    components: Mapping[str, Config] = field(default_factory=dict)
    """Configs of the whole pipeline by component, that of the scheduler included; empty: unknown, as in a plan.

    A component that the pipeline lacks has no entry.
    """
    classes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Library and class of each component, as in the pipeline's index; empty: unknown."""
    sampling: Config = field(default_factory=dict)
    """What `sampling.json` says: steps and guidance scale; empty: unknown."""

    @property
    def denoiser_name(self) -> str:
        """The component that is the denoiser."""
        return _denoiser_name(self.pipeline_class, self.classes)


@dataclass(frozen=True)
class Source:
    """A finished pipeline in a directory."""

    name: str
    """For messages and names of files."""
    files: PipelineFiles
    shape: Shape
    run: Path | None = None
    """The run directory that it is a student of."""

    @property
    def directory(self) -> Path:
        """The directory of the pipeline."""
        return self.files.directory

    @property
    def denoiser_name(self) -> str:
        """The component that is the denoiser."""
        return self.shape.denoiser_name

    def config(self, component: str) -> dict[str, Any]:
        """Return the config of a component."""
        return dict(self.shape.components[component])


def find_source(text: str, *, student: str | None = None) -> Source:
    """Return the pipeline that a run directory, a pipeline directory, a downloaded hub name or `miniature` stands for.

    Args:
        text: the directory, or the name.
        student: which student of a run; None: the only one.

    Raises:
        CondistillError: it is none of these, or a run with several students.
    """
    directory = weights_path() / "teacher" if text == MINIATURE else expand_home(text)
    if (directory / MARK_NAME).is_file():
        return _student_of_run(directory, student)
    if student is not None:
        raise CondistillError(f"--student {student} is for run directories, and {text} is none; leave it out")
    if (directory / INDEX_NAME).is_file():
        return _source(directory, directory.resolve().name if text != MINIATURE else MINIATURE)
    if directory.is_file():
        raise _one_file(directory)
    if not directory.exists() and _HUB_NAME.fullmatch(text) and (folder := downloaded_snapshot(text)):
        if (folder / INDEX_NAME).is_file():
            return _source(folder, text.rpartition("/")[2])
        raise CondistillError(f"{text} of the hub is no diffusers pipeline: its files have no {INDEX_NAME}")
    raise CondistillError(
        f"{text} is neither a run directory (with {MARK_NAME}), nor a diffusers pipeline (with {INDEX_NAME}), nor the "
        "name of a pipeline that was downloaded from the hub; give one of these, or miniature"
    )


def _one_file(file: Path) -> CondistillError:
    if file.suffix.lower() in (".yaml", ".yml"):
        return CondistillError(f"{file} is a recipe; give the run directory that `condistill run` made with it")
    return CondistillError(
        f"{file} is one file, and pipeline directories are exported. A checkpoint loads in ComfyUI as it is; for "
        "another format, make a directory of it with diffusers: from_single_file of its pipeline, then save_pretrained"
    )


def students_of(run: Path) -> list[str]:
    """Return the names of the finished students of a run."""
    return sorted(file.parent.name for file in (run / "pipelines").glob(f"*/{INDEX_NAME}"))


def _student_of_run(run: Path, student: str | None) -> Source:
    found = students_of(run)
    if not found:
        raise CondistillError(f"the run {run} has no finished student; run `condistill run` with its recipe first")
    if student is None and len(found) > 1:
        raise CondistillError(f"the run {run} has several students; choose one with --student: {', '.join(found)}")
    name = student or found[0]
    if name not in found:
        raise CondistillError(f"the run {run} has no finished student {name!r}{nearest(name, found)}")
    recipe = run / RECIPE_NAME
    teacher = _teacher_config(run) if recipe.is_file() else None
    return _source(run / "pipelines" / name, name, teacher=teacher, run=run)


def _teacher_config(run: Path) -> Config | None:
    """Return the config of the denoiser of a run's teacher; None where the teacher is no longer on this machine."""
    prepared = run / "teacher"
    try:
        location = prepared if prepared.is_dir() else read_index(Recipe.load(run / RECIPE_NAME).teacher)[0]
    except CondistillError:
        return None
    if not isinstance(location, Path):
        return None
    index = PipelineFiles.read(location).index
    file = location / family_of_pipeline(index["_class_name"]).denoiser_name / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _source(directory: Path, name: str, *, teacher: Config | None = None, run: Path | None = None) -> Source:
    files = PipelineFiles.read(directory)
    files = replace(files, variant=check_safetensors(directory, files.index, None))
    pipeline_class = files.index["_class_name"]
    classes = {
        part: (str(value[0]), str(value[1]))
        for part, value in files.index.items()
        if isinstance(value, list) and len(value) == 2 and None not in value
    }
    configs = {part: config for part in classes if (config := _config_of(directory / part)) is not None}
    component = _denoiser_name(pipeline_class, classes)
    if component not in configs:
        raise CondistillError(f"{directory / component} has no config.json; save the pipeline again")
    denoiser = configs[component]
    sampling = directory / SAMPLING_NAME
    shape = Shape(
        pipeline_class,
        denoiser.get("_class_name", classes[component][1]),
        denoiser,
        teacher,
        configs,
        classes,
        _read_json(sampling) if sampling.is_file() else {},
    )
    return Source(name, files, shape, run)


def _denoiser_name(pipeline_class: str, classes: Mapping[str, tuple[str, str]]) -> str:
    """Return the component that is the denoiser. A pipeline that can be exported needs no teacher family.

    Raises:
        CondistillError: no family supports the pipeline, and it has no component of a denoiser's usual name.
    """
    try:
        return family_of_pipeline(pipeline_class).denoiser_name
    except CondistillError as error:
        if found := [name for name in _DENOISERS if name in classes]:
            return found[0]
        raise CondistillError(
            f"the denoiser of a {pipeline_class} is not known: it has neither {' nor '.join(_DENOISERS)}"
        ) from error


def _config_of(directory: Path) -> Config | None:
    """Return the config of a model or a scheduler; None: the component is something else."""
    found = [file for name in ("config.json", "scheduler_config.json") if (file := directory / name).is_file()]
    return _read_json(found[0]) if found else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CondistillError(f"{file} cannot be read ({error}); save the pipeline again") from error
    if not isinstance(content, dict):
        raise CondistillError(f"{file} is no JSON object; save the pipeline again")
    return content
