"""Find a teacher, check it before anything is loaded, and load it through its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.miniature import weights_path
from condistill.teachers.families.dit import DiT
from condistill.teachers.families.flux import Flux
from condistill.teachers.families.pixart import PixArt
from condistill.teachers.families.sana import Sana
from condistill.teachers.families.stable_diffusion import StableDiffusion
from condistill.teachers.families.stable_diffusion_3 import StableDiffusion3
from condistill.teachers.families.stable_diffusion_inpaint import StableDiffusionInpaint
from condistill.teachers.families.stable_diffusion_xl import StableDiffusionXL
from condistill.teachers.family import Family
from condistill.utils.hashing import hash_file, key_of

_ALL = (StableDiffusion, StableDiffusionXL, StableDiffusionInpaint, StableDiffusion3, Flux, PixArt, Sana, DiT)
FAMILIES: dict[str, type[Family]] = {family.name: family for family in _ALL}
"""The registry: adding a family is adding its file and its name here."""

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def locate(settings: TeacherSettings) -> Path | str:
    """The teacher's directory, or its hub name.

    Raises:
        CondistillError: a directory that is not there or holds no pipeline.
    """
    if settings.pipeline == MINIATURE:
        return weights_path() / "teacher"
    path = Path(settings.pipeline).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CondistillError(
                f"teacher.pipeline {path} has no model_index.json, so it is no diffusers pipeline; "
                "give the directory that save_pretrained wrote"
            )
        return path
    if path.is_file():
        raise CondistillError(
            f"teacher.pipeline {path} is a single file; give a diffusers pipeline directory (load the file with "
            "from_single_file and save_pretrained it once)"
        )
    if settings.pipeline.startswith((".", "/", "~")) or settings.pipeline.count("/") != 1:
        raise CondistillError(f"there is no teacher at {path}; give a diffusers pipeline directory or a hub name")
    return settings.pipeline


def refuse_pickles(path: Path, index: dict[str, Any], variant: str | None) -> None:
    """Every model of a local pipeline must have safetensors.

    Raises:
        CondistillError: names the components that have pickles only.
    """
    pickled = []
    for name, value in index.items():
        folder = path / name
        if name.startswith("_") or not isinstance(value, list) or value[0] is None or not folder.is_dir():
            continue
        weights = [file.name for file in folder.iterdir()]
        safe = [file for file in weights if file.endswith(".safetensors")]
        if not safe and any(file.endswith(_PICKLES) for file in weights):
            pickled.append(name)
        elif variant and safe and not any(f".{variant}." in file for file in safe):
            raise CondistillError(f"teacher.variant {variant!r}: {folder} has only {', '.join(sorted(safe))}")
    if pickled:
        raise CondistillError(
            f"the teacher at {path} has pickle weights only for {', '.join(pickled)}; a pickle can run code, so only "
            "safetensors are loaded: load it once where you trust it and save_pretrained(..., safe_serialization=True)"
        )


def read_index(settings: TeacherSettings) -> tuple[Path | str, dict[str, Any]]:
    """The teacher's place and its `model_index.json`, with nothing loaded."""
    place = locate(settings)
    if isinstance(place, Path):
        file = place / "model_index.json"
        try:
            index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CondistillError(f"{file} is not JSON ({error}); save the pipeline again") from error
        refuse_pickles(place, index, settings.variant)
        return place, index
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(place, revision=settings.revision)
    except (OSError, ValueError) as error:
        raise CondistillError(
            f"teacher.pipeline {place!r} is neither a directory nor a hub name that can be reached: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return place, dict(index)


def family_class(settings: TeacherSettings, index: dict[str, Any]) -> type[Family]:
    """The family that stands for the teacher's pipeline class.

    Raises:
        CondistillError: no family does.
    """
    pipeline_class = index.get("_class_name", "an unnamed class")
    for family in FAMILIES.values():
        if pipeline_class in family.pipeline_classes and settings.family in ("auto", family.name):
            return family
    known = "; ".join(f"{f.name} ({', '.join(f.pipeline_classes)})" for f in FAMILIES.values())
    raise CondistillError(
        f"the teacher is a {pipeline_class}, which family {settings.family!r} does not cover; supported: {known}"
    )


def family_of(denoiser: Any) -> type[Family]:
    """The first family with denoisers of this class.

    Raises:
        CondistillError: there is none.
    """
    name = type(denoiser).__name__
    for family in FAMILIES.values():
        if family.denoiser_class == name:
            return family
    known = ", ".join(sorted({family.denoiser_class for family in FAMILIES.values()}))
    raise CondistillError(f"a {name} cannot be compressed; supported: {known}")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """What `teacher.dtype` means on a device."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_teacher(settings: TeacherSettings, *, device: torch.device | str = "cpu") -> Family:
    """Load a teacher from safetensors; remote code is never run.

    Raises:
        CondistillError: says what is wrong with the pipeline and what to give instead.
    """
    from diffusers import DiffusionPipeline

    place, index = read_index(settings)
    family = family_class(settings, index)
    device = torch.device(device)
    left_out = [name for name, value in index.items() if isinstance(value, list | tuple) and value[0] is None]
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            place,
            **dict.fromkeys(left_out),  # without T5, Stable Diffusion 3 loads only where diffusers is told so
            torch_dtype=choose_dtype(settings.dtype, device),
            use_safetensors=True,
            revision=settings.revision,
            variant=settings.variant,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "tiktoken" in reason:  # what transformers tries, and asks for, where it could not read SentencePiece's
            reason = "its tokenizer is a SentencePiece file that cannot be read; pip install sentencepiece protobuf"
        raise CondistillError(f"the teacher {place} cannot be loaded: {reason}") from error
    return family(pipeline, resolution=settings.resolution).to(device)


def teacher_key(settings: TeacherSettings) -> str:
    """Identity of a teacher: the hash of its files, or its hub name and revision, and the size it draws in."""
    place = locate(settings)
    size = () if settings.resolution is None else (settings.resolution,)
    if isinstance(place, str):
        return key_of(place, settings.revision, settings.variant, *size)
    files = sorted(f for f in place.rglob("*") if f.suffix in (".safetensors", ".json", ".txt") and f.is_file())
    return key_of({str(f.relative_to(place)): hash_file(f) for f in files}, settings.variant, *size)
