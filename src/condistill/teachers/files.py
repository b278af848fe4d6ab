"""Find the files that loading a pipeline reads; other files of its directory do not matter."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
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
_SHARD = r"-\d+-of-\d+"
_VARIANT = re.compile(rf"(diffusion_pytorch_model|model)({_SHARD})?\.(?P<variant>[^.]+?)({_SHARD})?\.safetensors")
"""Names of the weights of a variant: diffusers writes `model.fp16-00001-of-00002`, older versions another order."""
PLAIN = re.compile(rf"(diffusion_pytorch_model|model)({_SHARD})?\.safetensors")
"""Names of weights without a variant."""
_STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model",)}
"""How the weights are named, by the library of the component; other libraries use either."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of a number, by the name that safetensors gives to its dtype; other dtypes hold no weights of a denoiser."""
_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16"}
"""Dtypes in which a pipeline can be loaded, by safetensors' name; bfloat16 for all others."""


@dataclass(frozen=True)
class PipelineFiles:
    """The files of a pipeline's directory that loading it reads."""

    directory: Path
    index: Mapping[str, Any]
    """The content of its `model_index.json`."""
    variant: str | None = None
    """The file variant that is loaded, such as `fp16`."""

    @classmethod
    def read(cls, directory: Path) -> PipelineFiles:
        """Read the index of a pipeline that is loaded without a variant.

        Raises:
            CondistillError: the directory has no index, or it is not the index of a pipeline.
        """
        file = directory / INDEX_NAME
        try:
            index = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CondistillError(f"{file} cannot be read ({error}); save the pipeline again") from error
        if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
            raise CondistillError(f"{file} does not name the class of a pipeline; save the pipeline again")
        return cls(directory, index)

    @cached_property
    def by_component(self) -> dict[str, list[Path]]:
        """The files of every component, and the index under the empty name."""
        return pipeline_files(self.directory, self.index, variant=self.variant)

    def weights(self, component: str) -> list[Path]:
        """Return the safetensors files of a component."""
        return [file for file in self.by_component.get(component, ()) if file.suffix == ".safetensors"]

    def weight_bytes(self, component: str) -> int:
        """Return the size on disk of a component's safetensors files."""
        return sum(file.stat().st_size for file in self.weights(component))

    def total_bytes(self) -> int:
        """Return the size on disk of all files."""
        return sum(file.stat().st_size for files in self.by_component.values() for file in files)

    def dtype(self, component: str) -> str:
        """Return the dtype of most of a component's weights as it is on disk: float32, float16 or bfloat16.

        Raises:
            CondistillError: a file is not in safetensors format, or is cut off.
        """
        count: Counter[str] = Counter()
        for file in self.weights(component):
            count += _bytes_by_dtype(file)
        return _DTYPES.get(count.most_common(1)[0][0], "bfloat16") if count else "float32"


def _bytes_by_dtype(file: Path) -> Counter[str]:
    """Return the bytes of the weights of a safetensors file by their dtype, from its header."""
    from safetensors import SafetensorError, safe_open

    count: Counter[str] = Counter()
    try:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                tensor = tensors.get_slice(name)
                dtype = tensor.get_dtype()
                count[dtype] += prod(tensor.get_shape()) * _BYTES.get(dtype, 0)
    except (OSError, SafetensorError) as error:
        raise CondistillError(
            f"{file} is damaged ({error}); delete the pipeline's directory, then make it or download it again"
        ) from error
    return count


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


def variants_in(names: Iterable[str]) -> set[str]:
    """Return the variants of which a component has safetensors weights, sharded or not, such as `fp16`."""
    return {found["variant"] for name in names if (found := _VARIANT.fullmatch(name))}


def has_variant(directory: Path, variant: str) -> bool:
    """Return whether a component's directory has safetensors files of a variant, sharded or not."""
    return variant in variants_in(file.name for file in directory.glob("[!.]*.safetensors"))


def without_variant(name: str, variant: str | None) -> str:
    """Return the name of a file without its variant: `model.safetensors` for `model.fp16.safetensors`."""
    return re.sub(rf"\.{re.escape(variant)}(?=[.-])", "", name, count=1) if variant else name


def place_without_variant(
    file: Path, target: Path, variant: str | None, *, place: Callable[[Path, Path], object]
) -> None:
    """Add a file to a pipeline that has no variant; an index of shards then names them without it.

    Args:
        target: where it belongs, with its own name.
        variant: that its name loses.
        place: copies or links a file to a path.
    """
    target = target.with_name(without_variant(target.name, variant))
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.name.endswith(".safetensors.index.json") or target.name == file.name:
        place(file, target)
        return
    index = json.loads(file.read_text(encoding="utf-8"))
    names = {weight: without_variant(shard, variant) for weight, shard in index["weight_map"].items()}
    target.write_text(json.dumps({**index, "weight_map": names}, indent=2) + "\n", encoding="utf-8")


def weight_files(directory: Path, library: str, variant: str | None) -> list[Path]:
    """Return the safetensors files of a model, and the index that lists them if they are sharded.

    Args:
        directory: the component's directory.
        library: the component's library in the pipeline's index.
        variant: used if the directory has safetensors of it.
    """
    for mark in (variant, None) if variant and has_variant(directory, variant) else (None,):
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
