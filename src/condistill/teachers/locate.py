"""Find a teacher and its index, and check its files; nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.miniature import weights_path
from condistill.teachers.defaults import SAMPLING_NAME, Origin
from condistill.teachers.family import Family
from condistill.teachers.files import INDEX_NAME, pipeline_files
from condistill.teachers.hub import cached_file, hub_commit, repository_files
from condistill.teachers.lora import unmentioned_loras
from condistill.teachers.registry import family_of_pipeline
from condistill.teachers.replaced import read_scheduler, read_vae_config, vae_directory
from condistill.teachers.single_file import config_directory
from condistill.teachers.variants import choose_variant, names_in_directory, names_in_repository
from condistill.utils.text import first_line

_SHOWN = 3
_FILES = (".safetensors", ".gguf")
_PICKLED_PIPELINES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def is_file(settings: TeacherSettings) -> bool:
    """Return whether a teacher is given as one file."""
    return settings.pipeline != MINIATURE and _path(settings).is_file()


def is_plain(settings: TeacherSettings) -> bool:
    """Return whether a teacher is a pipeline as it is: no single file, no LoRA, and nothing replaced."""
    return not (settings.loras or settings.vae or settings.scheduler or is_file(settings))


def _path(settings: TeacherSettings) -> Path:
    try:
        return Path(settings.pipeline).expanduser()
    except RuntimeError as error:
        raise CondistillError(
            f"teacher.pipeline {settings.pipeline}: the home directory of this user is unknown; write the whole path"
        ) from error


def locate(settings: TeacherSettings) -> Path | str:
    """Return the teacher's directory, or its hub name; for one file, the directory with its configs.

    Raises:
        CondistillError: there is no such directory, or it holds no pipeline.
    """
    if settings.pipeline == MINIATURE:
        return weights_path() / "teacher"
    path = _path(settings)
    if path.is_file():
        return _configs_of_file(path, settings)
    if settings.config is not None:
        raise CondistillError(
            f"teacher.config is {settings.config}, and teacher.pipeline {settings.pipeline} is no file; leave out "
            "teacher.config, which is for pipelines in one file"
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CondistillError(
                f"teacher.pipeline {path} has no model_index.json, so it is not a diffusers pipeline; give the "
                "directory that save_pretrained wrote"
            )
        return path
    is_no_name = settings.pipeline.startswith((".", "/", "~")) or settings.pipeline.count("/") != 1
    if is_no_name or path.suffix.lower() in (*_FILES, *_PICKLED_PIPELINES):
        raise CondistillError(
            f"teacher.pipeline {path} does not exist; give a diffusers pipeline directory, one safetensors file or a "
            "hub name"
        )
    return settings.pipeline


def _configs_of_file(file: Path, settings: TeacherSettings) -> Path:
    """Return the directory with the configs of a pipeline in one file.

    Raises:
        CondistillError: it is no safetensors file, or there are no configs for it.
    """
    if file.suffix.lower() in _PICKLED_PIPELINES:
        raise CondistillError(
            f"teacher.pipeline {file} is a pickle, which can run code, so it is not loaded; convert it once where you "
            "trust it: load it with from_single_file of its diffusers pipeline, call save_pretrained, and give that "
            "directory; or give the safetensors file of the same model"
        )
    if file.suffix.lower() not in _FILES:
        raise CondistillError(
            f"teacher.pipeline {file} is neither a diffusers pipeline directory nor a safetensors file; give one of "
            "these, or a hub name"
        )
    if settings.revision or settings.variant:
        name = "revision" if settings.revision else "variant"
        raise CondistillError(f"teacher.{name} is set, and teacher.pipeline {file} is one file; leave out {name}")
    return config_directory(file, settings.config)


def check_safetensors(path: Path, index: Mapping[str, Any], variant: str | None) -> str | None:
    """Return the variant with which the models of a local pipeline are loaded; see `choose_variant`.

    Raises:
        CondistillError: a component has no safetensors, or none of the variant; the message names it.
    """
    return choose_variant(str(path), names_in_directory(path, index), variant)


def read_index(settings: TeacherSettings) -> tuple[Path | str, dict[str, Any]]:
    """Return the teacher's location and its index, with what replaces parts of it; nothing is loaded.

    Raises:
        CondistillError: the file cannot be read, or the weights are not safetensors.
    """
    location = locate(settings)
    if isinstance(location, Path):
        index = _read_local_index(location / INDEX_NAME)
        variant_of(settings, location, index)
        return location, _with_replaced(settings, index)
    from diffusers import DiffusionPipeline

    try:
        index = dict(DiffusionPipeline.load_config(location, **load_options(location, settings)))
    except (OSError, ValueError) as error:
        raise CondistillError(
            f"teacher.pipeline {location!r} on the hub has no {INDEX_NAME} that can be read, so it is no diffusers "
            f"pipeline: {first_line(error)}"
        ) from error
    index = _checked_index(index, f"the {INDEX_NAME} of {location}")
    variant_of(settings, location, index)
    return location, _with_replaced(settings, index)


def _with_replaced(settings: TeacherSettings, index: dict[str, Any]) -> dict[str, Any]:
    """Return the index with the autoencoder and the scheduler that replace those of the pipeline."""
    replaced: dict[str, str] = {}
    if settings.scheduler is not None:
        replaced["scheduler"] = read_scheduler(settings.scheduler)["_class_name"]
    if settings.vae is not None:
        if "vae" not in index:
            raise CondistillError(f"teacher.vae is {settings.vae}, and a {index['_class_name']} has no autoencoder")
        if folder := vae_directory(settings.vae):
            replaced["vae"] = read_vae_config(folder)["_class_name"]
    return {**index, **{name: ["diffusers", kind] for name, kind in replaced.items()}}


def variant_of(settings: TeacherSettings, location: Path | str, index: Mapping[str, Any]) -> str | None:
    """Return the variant of the weight files with which a teacher is loaded; None: without a variant.

    Raises:
        CondistillError: see `choose_variant`.
    """
    if isinstance(location, Path):
        variant = check_safetensors(location, index, settings.variant)
        pipeline_files(location, index, variant=variant)  # names shards that are missing
        return variant
    files = repository_files(location, hub_commit(location, settings.revision))
    return choose_variant(location, names_in_repository(files, index), settings.variant)


def load_options(location: Path | str, settings: TeacherSettings) -> dict[str, Any]:
    """Return the arguments of diffusers and transformers that load from a location: for a hub name, its commit."""
    return {} if isinstance(location, Path) else hub_commit(location, settings.revision).options()


def teacher_warnings(settings: TeacherSettings) -> Iterator[str]:
    """Yield a line about what lies with a teacher and is not used: LoRAs that `teacher.loras` does not mention."""
    path = _path(settings)
    if settings.pipeline == MINIATURE or not path.exists():
        return
    found = unmentioned_loras(path if path.is_dir() else path.parent, settings.loras)
    if found:
        names = ", ".join(file.name for file in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield (
            "the teacher's folder has LoRAs that teacher.loras does not mention, so they are not used: "
            f"{names}{more}; add those that you want (teacher.loras: [{{path: {found[0]}, scale: 1.0}}]), or ignore "
            "this line"
        )


def origin_of(settings: TeacherSettings, location: Path | str) -> Origin:
    """Return where a teacher comes from, as far as that says how it is sampled."""
    loras = tuple(Path(lora.path).stem for lora in settings.loras)
    if is_file(settings):
        return Origin((_path(settings).stem, *loras))
    if isinstance(location, str):
        return Origin((location, *loras), cached_file(location, SAMPLING_NAME, hub_commit(location, settings.revision)))
    file = location / SAMPLING_NAME
    return Origin((location.resolve().name, *loras), file if file.is_file() else None)


def _read_local_index(file: Path) -> dict[str, Any]:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CondistillError(f"{file} is not valid JSON ({error}); save the pipeline again") from error
    except OSError as error:
        raise CondistillError(f"{file} cannot be read: {error.strerror}") from error
    return _checked_index(index, str(file))


def _checked_index(index: Any, source: str) -> dict[str, Any]:
    """Return the index of a pipeline, if every entry has the form that diffusers writes.

    Raises:
        CondistillError: names the first entry that has not.
    """
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise CondistillError(f"{source} is no index of a diffusers pipeline: it names no _class_name; save it again")
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list | tuple):
            continue  # a setting of the pipeline
        is_component = len(value) == 2 and all(part is None or isinstance(part, str) for part in value)
        if not is_component or (value[0] is None) != (value[1] is None):
            raise CondistillError(
                f"{source} gives {name!r} as {json.dumps(value)}; a component is a library and a class, such as "
                '["diffusers", "UNet2DConditionModel"], or [null, null]; save the pipeline again'
            )
    return index


def family_class(settings: TeacherSettings, index: Mapping[str, Any]) -> type[Family]:
    """Return the family of the teacher's pipeline class.

    Args:
        index: the teacher's `model_index.json`.

    Raises:
        CondistillError: `teacher.family` is unknown, or no family supports the pipeline class.
    """
    return family_of_pipeline(index.get("_class_name", "pipeline without a class"), name=settings.family)
