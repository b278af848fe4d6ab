"""Write a pipeline as one safetensors file, one weight at a time, and compare the file with the pipeline."""

from __future__ import annotations

import json
import math
import shutil
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
from condistill.export.single_file.restore import check_weights
from condistill.export.single_file.weights import pipeline_weights
from condistill.export.source import Source
from condistill.teachers.files import INDEX_NAME
from condistill.utils.tensor_file import largest, write_in_order

Tensors = Iterator[tuple[str, Tensor]]
_OUTSIDE = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that no checkpoint has, and without which a pipeline works."""


def write_single_file(file: Path, source: Source, layout: Layout, *, dtype: str | None) -> None:
    """Write the weights under the names of a layout, all in one dtype.

    Args:
        dtype: of the weights; None: that of most of the denoiser's weights.

    Raises:
        CondistillError: the weights are not those of the configs, or one is not finite, or too large for the dtype.
    """
    kind = written_dtype(source, dtype)
    on_disk = pipeline_weights(source, shapes_only=True)
    for component in layout.components(source.shape):
        check_weights(component, source.shape, on_disk[component])
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
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": source.name,
        **layout.metadata(shape),
        **provenance(source),
        "condistill.version": metadata.version("condistill"),
        "diffusers.model_index": json.dumps(_index(source, layout)),
        "diffusers.configs": json.dumps(layout.configs(shape)),
        **({"diffusers.sampling": json.dumps(dict(shape.sampling))} if shape.sampling else {}),
    }


def _index(source: Source, layout: Layout) -> dict[str, Any]:
    """Return the index of a pipeline of what is in the file, with tokenizers and scheduler."""
    index: dict[str, Any] = {"_class_name": source.shape.pipeline_class}
    held = layout.components(source.shape)
    for name, value in source.files.index.items():
        if name in source.shape.classes:
            is_outside = name not in held and (name in _OUTSIDE or bool(source.files.weights(name)))
            index[name] = [None, None] if is_outside else value
        elif not name.startswith("_"):
            index[name] = value
    return index | ({"requires_safety_checker": False} if "safety_checker" in index else {})


def write_configs(directory: Path, source: Source, layout: Layout) -> None:
    """Write what diffusers needs besides the file: the configs, and for a checkpoint the index and the tokenizers."""
    index = _index(source, layout)
    contents: dict[Path, Any] = {}
    for component, config in layout.configs(source.shape).items():
        if index[component] != [None, None]:
            name = "scheduler_config.json" if component == "scheduler" else "config.json"
            contents[directory / component / name] = config
    if layout.is_checkpoint:
        contents[directory / INDEX_NAME] = index
    for file, content in contents.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for component, files in source.files.by_component.items() if layout.is_checkpoint else ():
        if component and component not in source.shape.components and index[component] != [None, None]:
            for file in files:
                target = directory / file.relative_to(source.directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


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
