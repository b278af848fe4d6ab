"""Check weights by diffusers: before an export by the model of their config, after it by diffusers' own conversion."""

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


def check_weights(component: str, shape: Shape, weights: Mapping[str, Tensor]) -> None:
    """Check that a component of diffusers has the weights that its config describes, with their shapes.

    Raises:
        CondistillError: a weight is missing, has another shape, or is of no layer.
    """
    if shape.classes[component][0] != "diffusers":
        return
    expected = _model(component, shape).state_dict()
    remedy = "save or download the pipeline again"
    for name, weight in expected.items():
        if name not in weights:
            raise CondistillError(f"the {component} has no weight {name}, which its config demands; {remedy}")
        if weights[name].shape != weight.shape:
            raise CondistillError(
                f"the weight {name} of the {component} has the shape {list(weights[name].shape)}, and by its config "
                f"{list(weight.shape)}; {remedy}"
            )
    if others := [name for name in weights if name not in expected]:
        raise CondistillError(f"the {component} has the weight {others[0]}, which no layer of it has; {remedy}")


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
