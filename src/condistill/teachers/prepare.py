"""Make an ordinary pipeline directory of a teacher that is given as one file, with LoRAs, or with replaced parts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.component import load_component
from condistill.teachers.defaults import SAMPLING_NAME
from condistill.teachers.family import Family
from condistill.teachers.files import INDEX_NAME, PipelineFiles, pipeline_files, place_without_variant
from condistill.teachers.locate import family_class, is_file, load_options, read_index, variant_of
from condistill.teachers.lora import LoraLayer, fuse, read_lora
from condistill.teachers.replaced import (
    SCHEDULER_CONFIG,
    build_scheduler,
    read_scheduler,
    read_vae_config,
    scheduler_file,
    vae_directory,
    vae_weights,
)
from condistill.teachers.single_file import complete_configs, load_file, load_vae_file
from condistill.teachers.skeleton import teacher_skeleton
from condistill.teachers.source import teacher_files
from condistill.utils.atomic import remove
from condistill.utils.format import byte_size
from condistill.utils.quiet import quiet_libraries
from condistill.utils.text import first_line

_WORK_NAME = ".pipeline.partial"
"""Directory in which a pipeline is made; an unfinished one is not taken for results."""


def prepared_settings(settings: TeacherSettings, directory: Path) -> TeacherSettings:
    """Return the settings that load the pipeline which `prepare_teacher` made of a teacher."""
    plain = {"config": None, "loras": (), "vae": None, "scheduler": None, "revision": None, "variant": None}
    return settings.model_copy(update={"pipeline": str(directory), **plain})


def original_files(settings: TeacherSettings) -> dict[str, Path]:
    """Return every file that a teacher is made of, by a name that does not depend on its place.

    The files of a hub name are left out: its commit stands for them.

    Raises:
        CondistillError: the teacher, or a part of it, cannot be found.
    """
    location, _ = read_index(settings)
    files: dict[str, Path] = {}
    if is_file(settings):
        assert isinstance(location, Path)
        file = Path(settings.pipeline).expanduser()
        files[f"teacher file {file.name}"] = file
        components = pipeline_files(location, read_index(_unchanged(settings))[1], variant=None)
        files |= {f"teacher.config file {p.relative_to(location).as_posix()}": p for p in _all(components)}
    elif isinstance(location, Path):
        pipeline = teacher_files(_unchanged(settings))
        files |= {f"teacher file {p.relative_to(location).as_posix()}": p for p in _all(pipeline.by_component)}
    for number, lora in enumerate(settings.loras):
        files[f"teacher.loras[{number}] file {Path(lora.path).name}"] = Path(lora.path)
    if settings.scheduler is not None:
        files[f"teacher.scheduler file {SCHEDULER_CONFIG}"] = scheduler_file(settings.scheduler)
    if settings.vae is not None:
        folder = vae_directory(settings.vae)
        for file in [Path(settings.vae)] if folder is None else [folder / "config.json", *vae_weights(folder)[0]]:
            files[f"teacher.vae file {file.name}"] = file
    return files


def _all(components: Mapping[str, list[Path]]) -> Iterator[Path]:
    for files in components.values():
        yield from files


def _unchanged(settings: TeacherSettings) -> TeacherSettings:
    """Return the settings of the pipeline without what is added to it or replaced."""
    return settings.model_copy(update={"loras": (), "vae": None, "scheduler": None})


@quiet_libraries()
def prepare_teacher(settings: TeacherSettings, directory: Path, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Write the pipeline of a teacher to a directory, as `save_pretrained` would.

    LoRAs are added to the weights, in the dtype of the files. Components that do not change are hard links to the
    teacher's files, or copies where the disk has no links.

    Args:
        directory: what stands in the way of a file of the pipeline is replaced; other files stay.
        say: called with a line for the user before each long part.

    Raises:
        CondistillError: a part cannot be read, or does not fit the pipeline.
    """
    work = directory / _WORK_NAME
    remove(work)
    work.mkdir(parents=True)
    try:
        if is_file(settings):
            _convert(settings, work, say)
        else:
            _assemble(settings, work, say)
        for path in work.iterdir():
            target = directory / path.name
            remove(target)
            path.replace(target)
    finally:
        remove(work)


def _convert(settings: TeacherSettings, out: Path, say: Callable[[str], None]) -> None:
    """Convert a pipeline in one file, change it in memory, and save it."""
    skeleton = teacher_skeleton(settings, only_sampled=True)  # checks the shapes of the file
    location, index = read_index(settings)
    assert isinstance(location, Path)
    file = Path(settings.pipeline).expanduser()
    say(f"teacher: converting {file} ({byte_size(file.stat().st_size)})")
    given = {"scheduler": build_scheduler(settings.scheduler)} if settings.scheduler else {}
    with complete_configs(location) as configs:
        vae = _replaced_vae(settings, configs)
        given |= {} if vae is None else {"vae": vae}
        models = skeleton.family.pipeline.components
        kind = type(skeleton.family).pipeline_type(index["_class_name"])
        pipeline = load_file(file, kind, configs, index=index, models=models, given=given)
    layers = _read_loras(settings, kind, pipeline.components, say)
    _fuse(layers, pipeline.components)
    say("teacher: saving the pipeline")
    pipeline.save_pretrained(out, safe_serialization=True)


def _replaced_vae(settings: TeacherSettings, configs: Path) -> Any:
    """Return the autoencoder that `teacher.vae` gives; None: there is none."""
    if settings.vae is None:
        return None
    folder = vae_directory(settings.vae)
    if folder is None:
        return load_vae_file(Path(settings.vae), configs)
    entry = ["diffusers", read_vae_config(folder)["_class_name"]]
    return _load_model(PipelineFiles(folder.parent, {folder.name: entry}, vae_weights(folder)[1]), folder.name)


def _assemble(settings: TeacherSettings, out: Path, say: Callable[[str], None]) -> None:
    """Link the components of a pipeline directory that do not change, and write the others."""
    base, index = _unchanged(settings), read_index(settings)[1]
    family = family_class(settings, index)
    if not isinstance(read_index(base)[0], Path):
        _download(base, family, say)
    files = teacher_files(base)
    models = _Models(files)
    layers = _read_loras(settings, family.pipeline_type(index["_class_name"]), models, say)
    _fuse(layers, models)
    written = {layer.component for layer in layers}
    for name in written:
        say(f"teacher: saving {name}")
        models[name].save_pretrained(out / name)
    if settings.scheduler is not None:
        written.add("scheduler")
        (out / "scheduler").mkdir()
        text = json.dumps(read_scheduler(settings.scheduler), indent=2) + "\n"
        (out / "scheduler" / SCHEDULER_CONFIG).write_text(text, encoding="utf-8")
    if settings.vae is not None:
        written.add("vae")
        _write_vae(settings, files, out / "vae")
    for name, of_component in files.by_component.items():
        for file in of_component if name and name not in written else ():
            place_without_variant(file, out / file.relative_to(files.directory), files.variant, place=_link)
    (out / INDEX_NAME).write_text(json.dumps(dict(index), indent=2) + "\n", encoding="utf-8")
    if (files.directory / SAMPLING_NAME).is_file():
        _link(files.directory / SAMPLING_NAME, out / SAMPLING_NAME)


def _write_vae(settings: TeacherSettings, files: PipelineFiles, out: Path) -> None:
    assert settings.vae is not None
    folder = vae_directory(settings.vae)
    if folder is None:
        load_vae_file(Path(settings.vae), files.directory).save_pretrained(out)
        return
    weights, variant = vae_weights(folder)
    for file in (folder / "config.json", *weights):
        place_without_variant(file, out / file.name, variant, place=_link)


def _download(base: TeacherSettings, family: type[Family], say: Callable[[str], None]) -> None:
    """Download the files of a hub name that loading its pipeline reads."""
    location, index = read_index(base)
    say(f"teacher: reading {location} from the hub")
    kind = family.pipeline_type(index["_class_name"])
    variant = variant_of(base, location, index)
    try:
        kind.download(location, variant=variant, use_safetensors=True, **load_options(location, base))
    except Exception as error:  # the errors of several HTTP libraries
        raise CondistillError(f"the teacher {location} cannot be downloaded: {first_line(error)}") from error


class _Models(Mapping[str, Any]):
    """The models of a pipeline directory in the dtypes of their files, each loaded when it is first needed."""

    def __init__(self, files: PipelineFiles) -> None:
        self._files = files
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            if not self._files.weights(name):
                raise KeyError(name)
            self._loaded[name] = _load_model(self._files, name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._files.by_component if name and self._files.weights(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _load_model(files: PipelineFiles, name: str) -> Any:
    """Load one model of a pipeline directory in the dtype of its files.

    Raises:
        CondistillError: it cannot be loaded.
    """
    dtype = getattr(torch, files.dtype(name))
    return load_component(files.directory, name, files.index[name], dtype, variant=files.variant)


def _read_loras(
    settings: TeacherSettings, kind: Any, components: Mapping[str, Any], say: Callable[[str], None]
) -> list[LoraLayer]:
    layers: list[LoraLayer] = []
    for lora in settings.loras:
        say(f"teacher: adding the LoRA {lora.path} with scale {lora.scale:g}")
        layers += read_lora(kind, lora, components)
    return layers


def _fuse(layers: list[LoraLayer], components: Mapping[str, Any]) -> None:
    fuse(layers, components)
    for name in {layer.component for layer in layers}:
        model: nn.Module = components[name]
        for key, weight in model.named_parameters():
            if not bool(weight.isfinite().all()):
                dtype = str(weight.dtype).removeprefix("torch.")
                raise CondistillError(
                    f"with its LoRAs, the weight {key} of the teacher's {name} is too large for {dtype}; lower the "
                    "scale in teacher.loras"
                )


def _link(file: Path, target: Path) -> None:
    """Link a file, or copy it where the disk has no hard links."""
    source = file.resolve()  # a file of the hub's cache is a link
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
