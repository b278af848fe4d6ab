"""Find the files that loading a pipeline reads; other files of its directory do not matter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from condistill.errors import CondistillError

INDEX_NAME = "model_index.json"
_CONFIGS = frozenset(
    {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "scheduler_config.json",
        "video_preprocessor_config.json",
    }
)
_PREPROCESSORS = ("Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "Extractor")
"""How the class names of tokenizers and processors end."""
_VOCABULARY = re.compile(
    r"(tokenizer(\.[\w.]+)?|tokenizer_config|special_tokens_map|added_tokens|chat_template|vocab|entity_vocab"
    r"|byte_maps|emoji)\.json|(vocab|merges|dict)\.txt|[\w-][\w.-]*\.(model|spm|jinja)"
)
"""Names of the files of tokenizers: those in `vocab_files_names` of transformers' classes, and their settings."""
_TEMPLATES = "additional_chat_templates"
_STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model",)}
"""How the weights are named, by the library of the component; other libraries use either."""


def pipeline_files(directory: Path, index: Mapping[str, Any], *, variant: str | None) -> dict[str, list[Path]]:
    """Return the files that loading a pipeline from safetensors reads, by component; "" has the pipeline's index.

    As in diffusers, a component without files of the variant is loaded without it. Pickles are never loaded.

    Args:
        directory: the pipeline's directory, or the snapshot of a hub repository.
        index: the content of its `model_index.json`; components that are null there are left out.

    Raises:
        CondistillError: the index of sharded weights cannot be read or names files that are missing.
    """
    found = {"": [directory / INDEX_NAME]}
    for name, value in index.items():
        if name.startswith("_") or not _is_component(value):
            continue
        library, class_name = value
        found[name] = sorted(_component_files(directory / name, library, class_name, variant))
    return found


def _is_component(value: Any) -> bool:
    """Return whether a value of the index is a library and a class that are to be loaded."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)


def weight_files(directory: Path, library: str, variant: str | None) -> list[Path]:
    """Return the safetensors files of a model, and the index that lists them if they are sharded.

    Args:
        directory: the component's directory.
        library: the component's library in the pipeline's index.
        variant: used if the directory has safetensors of it.
    """
    marks: list[str | None] = [None]
    names = [file.name for file in directory.glob("*.safetensors")] if directory.is_dir() else []
    if variant and any(name.split(".")[1].startswith(variant) for name in names if not name.startswith(".")):
        marks = [variant, None]
    for mark in marks:
        for stem in _STEMS.get(library, ("diffusion_pytorch_model", "model")):
            single, *indices = _weight_names(stem, mark)
            # diffusers prefers an index to a single file, transformers a single file to an index
            for name in (single, *indices) if stem == "model" else (*indices, single):
                if (directory / name).is_file():
                    return [directory / name, *(_shards(directory / name) if name in indices else ())]
    return []


def _weight_names(stem: str, variant: str | None) -> tuple[str, ...]:
    """Return the name of a model's single file, and the names that the index of its shards may have."""
    if variant is None:
        return f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    return (
        f"{stem}.{variant}.safetensors",
        f"{stem}.safetensors.index.{variant}.json",
        f"{stem}.safetensors.{variant}.index.json",
    )


def _shards(index: Path) -> list[Path]:
    """Return the files that the index of sharded weights names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CondistillError(f"{index} is not an index of sharded weights ({error!r}); download it again") from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise CondistillError(f"{index} names {outside[0]!r}; only files of its own directory are loaded")
    files = [index.with_name(name) for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CondistillError(f"{index} names files that are missing: {', '.join(missing)}; download them")
    return files


def _component_files(directory: Path, library: str, class_name: str, variant: str | None) -> Iterator[Path]:
    """Yield the files of one component."""
    if not directory.is_dir():
        return
    is_preprocessor = class_name.endswith(_PREPROCESSORS)
    for file in directory.iterdir():
        if file.is_file() and (file.name in _CONFIGS or (is_preprocessor and _VOCABULARY.fullmatch(file.name))):
            yield file
    if is_preprocessor:
        yield from (file for file in (directory / _TEMPLATES).glob("*.jinja") if file.is_file())
    else:
        yield from weight_files(directory, library, variant)
