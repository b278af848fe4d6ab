"""Finished pipelines that are evaluated together: their names, how each is sampled, and loading one at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from condistill.config.evaluate import EvaluateSettings
from condistill.config.recipe import MAX_NAME, TEACHER
from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError, nearest
from condistill.pipelines.sampling import Sampling
from condistill.run.directory import MARK_NAME, RECIPE_NAME
from condistill.teachers.defaults import recorded_resolution
from condistill.teachers.family import Family
from condistill.teachers.files import INDEX_NAME
from condistill.teachers.load import load_teacher, origin_of, read_index
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.hashing import key_of
from condistill.utils.malloc import release_freed_memory
from condistill.utils.quiet import quiet_libraries

_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")


@dataclass(frozen=True)
class PipelineModel:
    """A finished pipeline among those that are evaluated."""

    name: str
    """In all results; the first pipeline, or the one that the user chose, is `teacher`."""
    label: str
    """From its directory."""
    settings: TeacherSettings
    sampling: Sampling
    image_size: tuple[int, int]
    """(height, width) of its images in pixels."""


def find_pipelines(
    sources: Sequence[str], settings: EvaluateSettings, *, teacher: str | None = None
) -> list[PipelineModel]:
    """Return the pipelines with the teacher first, after checks that load no weights.

    Each is sampled with the steps and the guidance of its `sampling.json` or of its own call, unless the settings say
    otherwise.

    Args:
        sources: directories, hub names, safetensors files or `miniature`.
        teacher: one of the sources, or its label; None: the first.

    Raises:
        CondistillError: one is no pipeline of a family, or cannot be sampled as the settings say.
    """
    if twice := next((source for source in sources if sources.count(source) > 1), None):
        raise CondistillError(f"the pipeline {twice} is given twice; give each once")
    labels = pipeline_labels(sources)
    chosen = _chosen_teacher(sources, labels, teacher)
    ordered = [chosen, *(source for source in sources if source != chosen)]
    found = [_find(source, labels[source], settings, is_teacher=source == chosen) for source in ordered]
    _check_sizes(found, settings)
    return found


def pipeline_labels(sources: Sequence[str]) -> dict[str, str]:
    """Return a label for every source: the end of its path, as long as it must be to differ from the others.

    Labels consist of a-z, 0-9, _ and -, since they are names of folders.
    """
    parts = {source: _parts(source) for source in sources}
    lengths = dict.fromkeys(sources, 1)
    while True:
        labels = {source: _label(parts[source][-lengths[source] :]) for source in sources}
        clashes = [s for s in sources if [*labels.values()].count(labels[s]) > 1 or labels[s] == TEACHER]
        longer = [source for source in clashes if lengths[source] < len(parts[source])]
        if not longer:
            break
        for source in longer:
            lengths[source] += 1
    taken: set[str] = {TEACHER}
    for source, label in labels.items():
        name, number = label, 2
        while name in taken:
            name, number = f"{label[: MAX_NAME - 5]}-{number}", number + 1
        taken.add(name)
        labels[source] = name
    return labels


def _parts(source: str) -> tuple[str, ...]:
    path = Path(source).expanduser()
    if source != MINIATURE and path.exists():
        path = path.resolve()
        return (*path.parts[1:-1], path.stem if path.is_file() else path.name)
    return tuple(part for part in source.split("/") if part)


def _label(parts: Sequence[str]) -> str:
    name = _NOT_IN_NAMES.sub("-", "-".join(parts).lower()).strip("-_")
    return name[-MAX_NAME:].strip("-_") or "pipeline"


def _chosen_teacher(sources: Sequence[str], labels: dict[str, str], teacher: str | None) -> str:
    if teacher is None:
        return sources[0]
    known = {**{label: source for source, label in labels.items()}, **{source: source for source in sources}}
    known |= {source.rstrip("/"): source for source in sources}
    if teacher.rstrip("/") not in known:
        raise CondistillError(f"--teacher {teacher} is none of the pipelines{nearest(teacher, labels.values())}")
    return known[teacher.rstrip("/")]


def _find(source: str, label: str, settings: EvaluateSettings, *, is_teacher: bool) -> PipelineModel:
    _refuse_run(source)
    found = TeacherSettings(pipeline=source)
    try:
        resolution = recorded_resolution(origin_of(found, read_index(found)[0]))
        found = found.model_copy(update={"resolution": resolution})
        with quiet_libraries():
            family = teacher_skeleton(found, only_sampled=True).family
    except CondistillError as error:
        message = str(error).replace("teacher.pipeline", "pipeline")
        raise CondistillError(message) from error
    usual = family.default_sampling()
    steps = settings.num_inference_steps or usual.num_inference_steps
    guidance = usual.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    try:
        family.check_sampling(steps)
    except CondistillError as error:
        raise CondistillError(f"{label}: {error}; change evaluate.num_inference_steps") from error
    name = TEACHER if is_teacher else label
    return PipelineModel(name, label, found, Sampling(steps, guidance, resolution=resolution), family.image_size)


def _check_sizes(models: Sequence[PipelineModel], settings: EvaluateSettings) -> None:
    """Refuse images that the classifier cannot read, and images of several sizes where networks read them.

    The features of networks would differ by the size alone.
    """
    sizes = {model.image_size: model.label for model in models}
    if settings.classifier == MINIATURE:
        from condistill.miniature.world import IMAGE_SIZE

        for size in sizes.keys() - {(IMAGE_SIZE, IMAGE_SIZE)}:
            raise CondistillError(
                f"evaluate.classifier is 'miniature', which classifies images of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, and "
                f"those of {sizes[size]} have {size[1]}x{size[0]}; set it to 'none'"
            )
    if len(sizes) > 1 and settings.resize is None and any(settings.networks.model_dump().values()):
        shown = ", ".join(f"{label} {width}x{height}" for (height, width), label in sizes.items())
        raise CondistillError(
            f"the pipelines generate images of different sizes ({shown}), whose features would differ by the size "
            f"alone; set evaluate.resize, to {min(min(size) for size in sizes)} for example"
        )


def _refuse_run(source: str) -> None:
    """Refuse a run directory, which has pipelines and is none."""
    path = Path(source).expanduser()
    if source != MINIATURE and (path / MARK_NAME).is_file() and not (path / INDEX_NAME).is_file():
        raise CondistillError(
            f"{path} is a run directory; give its recipe ({path / RECIPE_NAME} --out {path}) to evaluate the run, or "
            f"its pipelines, such as {path / 'pipelines' / 'NAME'}"
        )


@dataclass
class PipelineLoader:
    """Loads pipelines, of which one is in memory at a time."""

    device: torch.device
    _name: str = ""
    _family: list[Family] = field(default_factory=list)
    """At most one, so that it can be freed."""

    def load(self, model: PipelineModel) -> Family:
        """Return a pipeline on the device, after the one before is freed.

        Raises:
            CondistillError: it cannot be loaded.
        """
        if self._name != model.name or not self._family:
            self.release()
            with quiet_libraries():
                self._family.append(load_teacher(model.settings, device=self.device, only_sampled=True))
            self._name = model.name
        return self._family[0]

    def release(self) -> None:
        """Free the pipeline that is in memory."""
        self._family.clear()
        release_freed_memory()


def latent_space(inputs: dict[str, object]) -> str:
    """Return a hash of the weights of the autoencoder of a pipeline: latents of pipelines with the same are compared.

    Args:
        inputs: see `teachers.load.teacher_inputs`.
    """
    parts = {name: value for name, value in inputs.items() if "vae/" in name and name.endswith(".safetensors")}
    return key_of(parts) if parts else key_of(inputs)
