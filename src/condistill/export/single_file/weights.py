"""The weights of a pipeline on disk: each is read when it is needed, or only its shape."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from condistill.errors import CondistillError, CorruptError
from condistill.export.single_file.layout import Weights
from condistill.export.source import Source
from condistill.utils.tensor_file import TensorFile

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an autoencoder's attention in files of older diffusers versions, which diffusers still reads."""
_NO_WEIGHTS = "embeddings.position_ids"
"""Constants that files of older transformers versions have."""


def canonical_name(class_name: str, name: str) -> str:
    """Return the name of a weight for which files of several versions have different names."""
    if class_name == "AutoencoderKL":
        return re.sub(
            r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda found: _OLD_ATTENTION[found[1]], name
        )
    if class_name.startswith("CLIPText") and not name.startswith(("text_model.", "text_projection.")):
        return f"text_model.{name}"
    return name


class ComponentWeights(Mapping[str, Tensor]):
    """The weights in the safetensors files of a component, on the CPU or, as shapes alone, on the meta device."""

    def __init__(self, files: Sequence[Path], class_name: str, *, shapes_only: bool = False) -> None:
        """Read the headers.

        Raises:
            CondistillError: a file is not a safetensors file, or is cut off.
        """
        self.shapes_only = shapes_only
        self._places: dict[str, tuple[TensorFile, str]] = {}
        for file in files:
            try:
                tensors = TensorFile(file)
            except CorruptError as error:
                raise CondistillError(f"{file} is damaged ({error}); save or download the pipeline again") from error
            self._places |= {
                canonical_name(class_name, name): (tensors, name) for name in tensors if not name.endswith(_NO_WEIGHTS)
            }

    def __getitem__(self, name: str) -> Tensor:
        tensors, key = self._places[name]
        if self.shapes_only:
            return torch.empty(tensors.shape(key), dtype=tensors.dtype(key), device="meta")
        return tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def pipeline_weights(source: Source, *, shapes_only: bool = False) -> Weights:
    """Return the weights of every component that has some."""
    return {
        name: ComponentWeights(files, source.shape.classes[name][1], shapes_only=shapes_only)
        for name in source.shape.classes
        if (files := source.files.weights(name))
    }
