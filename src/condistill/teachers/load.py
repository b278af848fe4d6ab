"""Load a teacher as its family, and name everything that its outputs depend on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.configs import check_sample_size, check_weights, using_config
from condistill.teachers.family import Family
from condistill.teachers.files import PipelineFiles
from condistill.teachers.hub import hub_commit
from condistill.teachers.locate import (
    check_safetensors,
    family_class,
    is_plain,
    load_options,
    locate,
    origin_of,
    read_index,
    variant_of,
)
from condistill.teachers.noise.schedule import check_no_consistency_model
from condistill.teachers.prepare import original_files, prepare_teacher, prepared_settings
from condistill.teachers.registry import family_of_pipeline
from condistill.utils.hashing import hash_file
from condistill.utils.text import first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "check_safetensors",
    "choose_dtype",
    "family_class",
    "load_options",
    "load_teacher",
    "locate",
    "origin_of",
    "pipeline_inputs",
    "read_index",
    "teacher_inputs",
    "variant_of",
]


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `teacher.dtype` stands for on a device."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_teacher(
    teacher: TeacherSettings | str | Path | DiffusionPipeline,
    *,
    device: torch.device | str = "cpu",
    only_sampled: bool = False,
    say: Callable[[str], None] | None = None,
    components: Mapping[str, Any] | None = None,
) -> Family:
    """Return a teacher as its family. Only safetensors are loaded, and remote code is never run.

    Args:
        teacher: a pipeline of diffusers, which is used as it is; or a directory, a hub name, one safetensors file or
            `miniature`; or the `teacher` section of a recipe.
        only_sampled: whether it only generates images; a consistency model can, but cannot teach.
        say: called with a line for the user before each long part of the conversion of a file, or of adding LoRAs.
        components: models that are in memory already, by their names in the pipeline; a directory or a hub name is
            loaded without them.

    Raises:
        CondistillError: the pipeline cannot be loaded, or no family supports it.
    """
    if isinstance(teacher, str | Path):
        teacher = TeacherSettings(pipeline=str(teacher))
    if not isinstance(teacher, TeacherSettings):
        family = family_of_pipeline(type(teacher).__name__)(teacher).to(device)
    elif is_plain(teacher):
        family = _load(teacher, torch.device(device), components or {})
    else:
        with tempfile.TemporaryDirectory(prefix="condistill-") as folder:
            prepare_teacher(teacher, Path(folder), say=say or (lambda _: None))
            family = _load(prepared_settings(teacher, Path(folder)), torch.device(device), {})
        family.origin = origin_of(teacher, read_index(teacher)[0])
    if not only_sampled:
        check_no_consistency_model(family.pipeline.scheduler)
    return family


def _load(settings: TeacherSettings, device: torch.device, components: Mapping[str, Any]) -> Family:
    """Load a teacher that is a directory or a hub name."""
    location, index = read_index(settings)
    family = family_class(settings, index)
    if isinstance(location, Path):
        file = location / family.denoiser_name / "config.json"
        with using_config(str(file)):
            config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            check_sample_size(config, index["_class_name"], str(file), resolution=settings.resolution)
    absent = [name for name, value in index.items() if isinstance(value, list | tuple) and value[0] is None]
    try:
        pipeline = family.pipeline_type(index["_class_name"]).from_pretrained(
            location,
            **components,
            **dict.fromkeys(absent),  # diffusers loads Stable Diffusion 3 without T5 only if T5 is passed as None
            torch_dtype=choose_dtype(settings.dtype, device),
            use_safetensors=True,
            variant=variant_of(settings, location, index),
            **load_options(location, settings),
        )
    except Exception as error:  # a damaged file can raise any exception; tokenizers raise plain ones
        reason = first_line(error)
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
    if isinstance(location, str):
        commit, variant = hub_commit(location, settings.revision).commit, variant_of(settings, location, index)
        inputs |= {"teacher.pipeline": location, "teacher.revision": commit, "teacher.variant": variant}
    inputs |= {name: hash_of(file) for name, file in original_files(settings).items()}
    return inputs | {f"teacher.loras[{number}].scale": lora.scale for number, lora in enumerate(settings.loras)}


def pipeline_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `teacher_inputs` that the files of a prepared pipeline depend on."""
    others = ("teacher.family", "teacher.dtype", "teacher.resolution")
    return {name: value for name, value in inputs.items() if name not in others}
