"""Find a teacher, check its files before anything is loaded, and load it as its family."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.miniature import weights_path
from condistill.teachers.configs import check_weights
from condistill.teachers.defaults import SAMPLING_NAME, Origin
from condistill.teachers.family import Family
from condistill.teachers.files import INDEX_NAME, PipelineFiles, pipeline_files
from condistill.teachers.hub import cached_file, hub_commit, repository_files
from condistill.teachers.registry import family_of_pipeline
from condistill.teachers.variants import choose_variant, names_in_directory, names_in_repository
from condistill.utils.hashing import hash_file


def locate(settings: TeacherSettings) -> Path | str:
    """Return the teacher's directory, or its hub name.

    Raises:
        CondistillError: there is no such directory, or it holds no pipeline.
    """
    if settings.pipeline == MINIATURE:
        return weights_path() / "teacher"
    try:
        path = Path(settings.pipeline).expanduser()
    except RuntimeError as error:
        raise CondistillError(
            f"teacher.pipeline {settings.pipeline}: the home directory of this user is unknown; write the whole path"
        ) from error
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CondistillError(
                f"teacher.pipeline {path} has no model_index.json, so it is not a diffusers pipeline; give the "
                "directory that save_pretrained wrote"
            )
        return path
    if path.is_file():
        raise CondistillError(
            f"teacher.pipeline {path} is a single file; give a diffusers pipeline directory (load the file with "
            "from_single_file and save_pretrained it once)"
        )
    if settings.pipeline.startswith((".", "/", "~")) or settings.pipeline.count("/") != 1:
        raise CondistillError(
            f"teacher.pipeline {path} does not exist; give a diffusers pipeline directory or hub name"
        )
    return settings.pipeline


def check_safetensors(path: Path, index: Mapping[str, Any], variant: str | None) -> str | None:
    """Return the variant with which the models of a local pipeline are loaded; see `choose_variant`.

    Raises:
        CondistillError: a component has no safetensors, or none of the variant; the message names it.
    """
    return choose_variant(str(path), names_in_directory(path, index), variant)


def read_index(settings: TeacherSettings) -> tuple[Path | str, dict[str, Any]]:
    """Return the teacher's location and its `model_index.json`, without loading anything.

    Raises:
        CondistillError: the file cannot be read, or the weights are not safetensors.
    """
    location = locate(settings)
    if isinstance(location, Path):
        index = _read_local_index(location / INDEX_NAME)
        variant_of(settings, location, index)
        return location, index
    from diffusers import DiffusionPipeline

    try:
        index = dict(DiffusionPipeline.load_config(location, **load_options(location, settings)))
    except (OSError, ValueError) as error:
        raise CondistillError(
            f"teacher.pipeline {location!r} on the hub has no {INDEX_NAME} that can be read, so it is no diffusers "
            f"pipeline: {str(error).splitlines()[0]}"
        ) from error
    index = _checked_index(index, f"the {INDEX_NAME} of {location}")
    variant_of(settings, location, index)
    return location, index


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


def origin_of(settings: TeacherSettings, location: Path | str) -> Origin:
    """Return where a teacher comes from, as far as that says how it is sampled."""
    if isinstance(location, str):
        return Origin((location,), cached_file(location, SAMPLING_NAME, hub_commit(location, settings.revision)))
    file = location / SAMPLING_NAME
    return Origin((location.resolve().name,), file if file.is_file() else None)


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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `teacher.dtype` stands for on a device."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_teacher(settings: TeacherSettings, *, device: torch.device | str = "cpu") -> Family:
    """Load a teacher from safetensors; remote code is never run.

    Raises:
        CondistillError: the pipeline cannot be loaded, or its family does not support it.
    """
    location, index = read_index(settings)
    family = family_class(settings, index)
    device = torch.device(device)
    absent = [name for name, value in index.items() if isinstance(value, list | tuple) and value[0] is None]
    try:
        pipeline = family.pipeline_type(index["_class_name"]).from_pretrained(
            location,
            **dict.fromkeys(absent),  # diffusers loads Stable Diffusion 3 without T5 only if T5 is passed as None
            torch_dtype=choose_dtype(settings.dtype, device),
            use_safetensors=True,
            variant=variant_of(settings, location, index),
            **load_options(location, settings),
        )
    except Exception as error:  # a damaged file can raise any exception; tokenizers raise plain ones
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "tiktoken" in reason:  # transformers asks for tiktoken if it cannot read a SentencePiece file
            reason = "its tokenizer is a SentencePiece file that cannot be read; pip install sentencepiece protobuf"
        raise CondistillError(f"the teacher {location} cannot be loaded: {reason}") from error
    if isinstance(location, Path):
        check_weights(pipeline, PipelineFiles(location, index, variant_of(settings, location, index)))
    teacher = family(pipeline, resolution=settings.resolution).to(device)
    teacher.origin = origin_of(settings, location)
    return teacher


def teacher_inputs(
    settings: TeacherSettings, device: torch.device | str, *, hash_of: Callable[[Path], str] = hash_file
) -> dict[str, Any]:
    """Return everything that the outputs of a teacher depend on, by name: the content of its files, not their place.

    Args:
        device: where it runs, which decides what `teacher.dtype: auto` stands for.
        hash_of: returns the SHA-256 of a file.

    Raises:
        CondistillError: the teacher cannot be found.
    """
    location, index = read_index(settings)
    inputs: dict[str, Any] = {
        "teacher.family": family_class(settings, index).name,
        "teacher.dtype": str(choose_dtype(settings.dtype, torch.device(device))).removeprefix("torch."),
        "teacher.resolution": settings.resolution,
    }
    variant = variant_of(settings, location, index)
    if isinstance(location, str):
        commit = hub_commit(location, settings.revision).commit
        return inputs | {"teacher.pipeline": location, "teacher.revision": commit, "teacher.variant": variant}
    components = pipeline_files(location, index, variant=variant)
    files = [file for of_component in components.values() for file in of_component]
    return inputs | {f"teacher file {file.relative_to(location).as_posix()}": hash_of(file) for file in files}
