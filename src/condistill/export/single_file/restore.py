"""Read a single file back with diffusers' own conversion, by which an export is checked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.export.source import Shape
from condistill.teachers.conversion import converted_tensors

_LIBRARIES = ("diffusers", "transformers")


def restore_by_diffusers(component: str, shape: Shape, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of a component from those of a single file, as diffusers converts them when it loads it."""
    return converted_tensors(_model(component, shape), dict(tensors))


def _model(component: str, shape: Shape) -> nn.Module:
    """Return a component on the meta device."""
    library, name = shape.classes[component]
    if library not in _LIBRARIES:
        raise CondistillError(f"the {component} is a {library}.{name}, which no single file holds")
    kind: Any = getattr(importlib.import_module(library), name)
    config = dict(shape.components[component])
    with torch.device("meta"):
        model: nn.Module = (
            kind.from_config(config) if library == "diffusers" else kind(kind.config_class.from_dict(config))
        )
    return model
