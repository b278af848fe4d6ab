"""A stand-in for torchvision, so that torch-fidelity can be imported: it has what torch-fidelity names, and no more.

torch-fidelity imports torchvision at its top, mostly for data sets and VGG, which no test uses.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch


def _pil_to_tensor(image: Any) -> torch.Tensor:
    """Return an RGB image as uint8 `[3, H, W]`."""
    return torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).contiguous()


class _Compose:
    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


def _normalize(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], *, inplace: bool) -> torch.Tensor:
    assert not inplace
    shape = (1, 3, 1, 1)
    return (images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for attribute, value in attributes.items():
        setattr(module, attribute, value)
    return module


def _modules() -> dict[str, ModuleType]:
    functional = _module("torchvision.transforms.functional", pil_to_tensor=_pil_to_tensor, normalize=_normalize)
    transforms = _module("torchvision.transforms", functional=functional, Compose=_Compose)
    datasets = _module(
        "torchvision.datasets", **{name: type(name, (), {}) for name in ("CIFAR10", "CIFAR100", "STL10")}
    )
    models = _module("torchvision.models")
    parts = {"transforms": transforms, "datasets": datasets, "models": models}
    modules = {f"torchvision.{name}": part for name, part in parts.items()}
    return {
        "torchvision": _module("torchvision", **parts),
        **modules,
        "torchvision.transforms.functional": functional,
    }


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Let torch-fidelity be imported without torchvision; an installed torchvision is used as it is.

    The stand-in leaves again, so that other libraries find no torchvision; torch-fidelity stays imported.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    modules = _modules()
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
