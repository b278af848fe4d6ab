"""Write a pipeline as one safetensors file, one weight at a time, and compare the file with the pipeline."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from condistill.errors import CondistillError
from condistill.export.exporter import Comparison
from condistill.export.single_file.layout import Layout
from condistill.export.single_file.provenance import provenance
from condistill.export.single_file.weights import pipeline_weights
from condistill.export.source import Config, Source
from condistill.utils.tensor_file import largest, write_in_order

Tensors = Iterator[tuple[str, Tensor]]


def write_single_file(file: Path, source: Source, layout: Layout, *, dtype: str | None) -> None:
    """Write the weights under the names of a layout, all in one dtype.

    Args:
        dtype: of the weights; None: that of most of the denoiser's weights.

    Raises:
        CondistillError: a weight is not finite, or too large for the dtype.
    """
    kind = written_dtype(source, dtype)
    shapes = [(name, tuple(each.shape), kind) for name, each in _tensors(layout, source, shapes_only=True)]
    write_in_order(
        file,
        shapes,
        _checked(_tensors(layout, source), kind),
        metadata=header_metadata(source, layout),
    )


def written_dtype(source: Source, dtype: str | None) -> torch.dtype:
    """Return the dtype of the file's weights."""
    kind: torch.dtype = getattr(torch, dtype or source.files.dtype(source.denoiser_name))
    return kind


def _tensors(layout: Layout, source: Source, *, shapes_only: bool = False) -> Tensors:
    return layout.tensors(source.shape, pipeline_weights(source, shapes_only=shapes_only))


def _checked(tensors: Tensors, kind: torch.dtype) -> Iterator[Tensor]:
    """Yield the weights.

    Raises:
        CondistillError: a weight is not finite, or too large for the dtype.
    """
    limit = torch.finfo(kind).max
    for name, tensor in tensors:
        size = float(largest(tensor))
        if not math.isfinite(size):
            raise CondistillError(f"the weight {name} has values that are not finite; train or download it again")
        if size > limit:
            raise CondistillError(
                f"the weight {name} has values up to {size:g}, and {str(kind).removeprefix('torch.')} ends at "
                f"{limit:g}; choose --dtype bfloat16 or float32"
            )
        yield tensor


def header_metadata(source: Source, layout: Layout) -> dict[str, str]:
    """Return what the header of the file says: how it was made, and the configs that diffusers reads.

    No path of this machine is in it.
    """
    shape = source.shape
    index = {name: list(value) for name, value in shape.classes.items()}
    configs = {name: _without_paths(config) for name, config in shape.components.items()}
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": source.name,
        **layout.metadata(shape),
        **provenance(source),
        "condistill.version": metadata.version("condistill"),
        "diffusers.model_index": json.dumps({"_class_name": shape.pipeline_class, **index}),
        "diffusers.configs": json.dumps(configs),
        **({"diffusers.sampling": json.dumps(dict(shape.sampling))} if shape.sampling else {}),
    }


def _without_paths(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def compare_single_file(file: Path, source: Source, layout: Layout, *, dtype: str | None) -> tuple[Comparison, ...]:
    """Return, for each component in a file, the largest difference of a weight from the pipeline's.

    A weight may differ by the rounding to the dtype of the file alone; otherwise the difference is infinite.
    """
    kind = written_dtype(source, dtype)
    tensors, weights = load_file(file), pipeline_weights(source)  # the file is mapped into memory
    return tuple(
        compare_component(name, layout.restored(name, source.shape, tensors), weights[name], kind)
        for name in layout.components(source.shape)
    )


def compare_component(
    component: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: torch.dtype
) -> Comparison:
    """Return the largest difference of a component's weights from those of the pipeline.

    Args:
        found: those of the file, under the names of the component's class.
        kind: dtype of the file.
    """
    names = {_plain(name): name for name in found}
    difference = tolerance = 0.0
    for name in expected:
        weight = expected[name]
        same = names.pop(_plain(name), None)
        if same is None:
            return Comparison(f"{component} ({name} is missing)", math.inf, 0.0)
        if not torch.equal(found[same], weight.to(kind)):
            return Comparison(f"{component} ({name} has other values)", math.inf, 0.0)
        if weight.dtype != kind and weight.numel():
            difference = max(difference, float(largest(weight.float() - weight.to(kind).float())))
            tolerance = max(tolerance, float(largest(weight)) * torch.finfo(kind).eps)
    if names:
        return Comparison(f"{component} ({next(iter(names))} is not in the pipeline)", math.inf, 0.0)
    return Comparison(component, difference, tolerance)


def _plain(name: str) -> str:
    """Return a name without the prefix that some versions of transformers give to a text encoder's weights."""
    return name.removeprefix("text_model.")
