"""Write a finished pipeline: the teacher's files as they are, with the student as its denoiser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from condistill.errors import CondistillError
from condistill.teachers.family import Family
from condistill.teachers.files import INDEX_NAME, PipelineFiles
from condistill.utils.atomic import atomic_directory, write_text

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""Entries of configs that may name a private directory, and that loading does not need."""


def save_pipeline(
    family: Family,
    denoiser: nn.Module,
    directory: Path,
    *,
    card: str,
    teacher: PipelineFiles | None = None,
    dtype: torch.dtype | None = None,
    scheduler: SchedulerMixin | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the teacher's pipeline with another denoiser, completely or not at all.

    With the teacher's files, all other components are copies of them: equal byte for byte, except that a config loses
    entries that name a directory, and that the index of sharded weights of a file variant names the shards without it.
    Files of a variant are renamed, so that the pipeline loads without `variant`.

    Args:
        card: text of README.md.
        teacher: the files of the teacher; None: the components are saved as they are in memory.
        dtype: of the denoiser's weights on disk; None: that of the teacher's denoiser in memory.
        scheduler: replaces the teacher's.
        files: text of further files, by name.

    Raises:
        CondistillError: a weight is too large for the dtype.
    """
    denoiser, dtype = denoiser.to("cpu", memory_format=torch.contiguous_format), dtype or family.dtype  # type: ignore[call-overload]
    if name := too_large(denoiser, dtype):
        raise CondistillError(
            f"the weight {name} of the student is too large for {str(dtype).removeprefix('torch.')}; set "
            "distill.save_dtype to float32 or bfloat16"
        )
    with atomic_directory(directory) as partial, _weights_in(denoiser, dtype):
        with family.using(denoiser, scheduler) as pipeline:
            if teacher is None:
                pipeline.save_pretrained(partial, safe_serialization=True)
            else:
                changed = {family.denoiser_name} | ({"scheduler"} if scheduler else set())
                _save_components(pipeline, partial, teacher, changed)
        for file in partial.rglob("*.json"):
            _remove_places(file)
        for name, text in {"README.md": card, **(files or {})}.items():
            write_text(partial / name, text)
        mode = (partial / "README.md").stat().st_mode
        for file in partial.rglob("*.safetensors"):
            file.chmod(mode)  # some versions of safetensors write files that only their owner can read


def too_large(denoiser: nn.Module, dtype: torch.dtype) -> str | None:
    """Return the name of the first weight of a denoiser that a dtype cannot hold; None if it holds all."""
    largest = torch.finfo(dtype).max
    weights = (named for named in denoiser.named_parameters() if torch.finfo(named[1].dtype).max > largest)
    return next((name for name, weight in weights if weight.numel() and weight.detach().abs().max() > largest), None)


def _save_components(pipeline: Any, directory: Path, teacher: PipelineFiles, changed: set[str]) -> None:
    """Copy the components that did not change, and save the others; a component without files is saved too."""
    index = dict(teacher.index)
    for name, files in teacher.by_component.items():
        if not name:
            continue
        component = getattr(pipeline, name)
        is_copied = bool(files) and name not in changed
        if is_copied and (teacher.weights(name) or not isinstance(component, nn.Module)):
            for file in files:
                target = directory / file.relative_to(teacher.directory)
                _copy(file, target.with_name(_without_variant(file.name, teacher.variant)), teacher.variant)
        else:
            component.save_pretrained(directory / name)
            index[name] = [index[name][0], type(component).__name__]
    write_text(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")


def _without_variant(name: str, variant: str | None) -> str:
    """Return the name of a file without its variant: `model.safetensors` for `model.fp16.safetensors`."""
    return re.sub(rf"\.{re.escape(variant)}(?=[.-])", "", name, count=1) if variant else name


def _copy(file: Path, target: Path, variant: str | None) -> None:
    """Copy a file; an index of sharded weights names its shards without the variant."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.name.endswith(".safetensors.index.json") and target.name != file.name:
        index = json.loads(file.read_text(encoding="utf-8"))
        names = {weight: _without_variant(shard, variant) for weight, shard in index["weight_map"].items()}
        write_text(target, json.dumps({**index, "weight_map": names}, indent=2) + "\n")
    else:
        shutil.copyfile(file, target)


@contextmanager
def _weights_in(denoiser: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast the weights of a denoiser for a while, except layers that diffusers keeps in float32."""
    kept = getattr(denoiser, "_keep_in_fp32_modules", None) or ()
    originals = []
    try:
        for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers()):
            if not tensor.is_floating_point() or tensor.dtype == dtype or any(part in name for part in kept):
                continue
            originals.append((tensor, tensor.data))
            tensor.data = tensor.detach().to(dtype)
        yield
    finally:
        for tensor, data in originals:
            tensor.data = data


def _remove_places(file: Path) -> None:
    """Remove the entries of a config that may name a private directory; a file without them stays as it is."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if _names_a_place(config):
        write_text(file, json.dumps(_without_places(config), indent=2) + "\n")


def _is_place(key: str, value: Any) -> bool:
    return key in _PLACES and isinstance(value, str)


def _names_a_place(config: Any) -> bool:
    if isinstance(config, dict):
        return any(_is_place(key, value) or _names_a_place(value) for key, value in config.items())
    return isinstance(config, list) and any(map(_names_a_place, config))


def _without_places(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_places(value) for key, value in config.items() if not _is_place(key, value)}
    return [_without_places(value) for value in config] if isinstance(config, list) else config
