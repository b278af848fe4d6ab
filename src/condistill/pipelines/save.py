"""Write a finished pipeline: the teacher's files as they are, with the student as its denoiser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.family import Family
from condistill.teachers.files import INDEX_NAME, PipelineFiles, place_without_variant
from condistill.utils.atomic import atomic_directory, write_text
from condistill.utils.tensor_file import largest, write_tensors
from condistill.utils.weights import is_cast

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

_PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""Entries of configs that may name a private directory, and that loading does not need."""
MAX_SHARD_BYTES = 10 * 10**9
"""Larger weights are divided into several files, as by diffusers."""
_WEIGHTS = "diffusion_pytorch_model"


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
    dtype = dtype or family.dtype
    if name := too_large(denoiser, dtype):
        raise CondistillError(
            f"the weight {name} of the student is too large for {str(dtype).removeprefix('torch.')}; set "
            "distill.save_dtype to float32 or bfloat16"
        )
    with atomic_directory(directory) as partial:
        with family.using(denoiser, scheduler) as pipeline:
            if teacher is None:
                _save_all_but(family.denoiser_name, pipeline, partial)
            else:
                changed = {"scheduler"} if scheduler else set()
                _save_components(pipeline, partial, teacher, denoiser_name=family.denoiser_name, changed=changed)
            save_denoiser(denoiser, partial / family.denoiser_name, dtype)
        for file in partial.rglob("*.json"):
            _remove_places(file)
        for name, text in {"README.md": card, **(files or {})}.items():
            write_text(partial / name, text)
        mode = (partial / "README.md").stat().st_mode
        for file in partial.rglob("*.safetensors"):
            file.chmod(mode)  # some versions of safetensors write files that only their owner can read


def save_denoiser(denoiser: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write a denoiser on any device as diffusers would, tensor by tensor: there is no second copy of its weights.

    Args:
        dtype: of the file, except for layers that diffusers keeps in float32. The denoiser does not change.
    """
    denoiser.save_config(directory)
    tensors: dict[str, Tensor] = denoiser.state_dict()
    dtypes = {name: dtype for name, tensor in tensors.items() if is_cast(denoiser, name, tensor)}
    sizes = {name: tensor.numel() * dtypes.get(name, tensor.dtype).itemsize for name, tensor in tensors.items()}
    files = _files_of_weights(sizes)
    for file, names in files.items():
        write_tensors(
            directory / file,
            {name: tensors[name] for name in names},
            metadata={"format": "pt"},
            dtypes={name: dtypes[name] for name in names if name in dtypes},
        )
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_text(directory / f"{_WEIGHTS}.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _files_of_weights(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the names of files and of their weights: one file, or several of at most `MAX_SHARD_BYTES`.

    Args:
        sizes: bytes of every weight.
    """
    shards: list[list[str]] = [[]]
    room = MAX_SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {f"{_WEIGHTS}.safetensors": shards[0]}
    return {
        f"{_WEIGHTS}-{number:05d}-of-{len(shards):05d}.safetensors": names for number, names in enumerate(shards, 1)
    }


def too_large(denoiser: nn.Module, dtype: torch.dtype) -> str | None:
    """Return the name of the first weight of a denoiser that a dtype cannot hold; None if it holds all."""
    limit = torch.finfo(dtype).max
    weights = (named for named in denoiser.named_parameters() if torch.finfo(named[1].dtype).max > limit)
    return next((name for name, weight in weights if largest(weight) > limit), None)


def _save_all_but(name: str, pipeline: Any, directory: Path) -> None:
    """Save the index of a pipeline and all components as they are in memory, but one."""
    pipeline.save_config(directory)
    for other, component in pipeline.components.items():
        if component is not None and other != name:
            component.save_pretrained(directory / other)


def _save_components(
    pipeline: Any, directory: Path, teacher: PipelineFiles, *, denoiser_name: str, changed: set[str]
) -> None:
    """Copy the components that did not change, and save the others but the denoiser; those without files too."""
    index = dict(teacher.index)
    changed = {*changed, denoiser_name}
    for name, files in teacher.by_component.items():
        if not name:
            continue
        component = getattr(pipeline, name)
        is_copied = bool(files) and name not in changed
        if is_copied and (teacher.weights(name) or not isinstance(component, nn.Module)):
            for file in files:
                target = directory / file.relative_to(teacher.directory)
                place_without_variant(file, target, teacher.variant, place=shutil.copyfile)
        else:
            if name != denoiser_name:
                component.save_pretrained(directory / name)
            index[name] = [index[name][0], type(component).__name__]
    write_text(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")


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
