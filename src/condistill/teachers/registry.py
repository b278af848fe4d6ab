"""The registry of families, and how to find the family of a pipeline, a denoiser or a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from condistill.errors import CondistillError, nearest
from condistill.teachers.families.dit import DiT
from condistill.teachers.families.flux import Flux
from condistill.teachers.families.pixart import PixArt
from condistill.teachers.families.sana import Sana
from condistill.teachers.families.stable_diffusion import StableDiffusion
from condistill.teachers.families.stable_diffusion_3 import StableDiffusion3
from condistill.teachers.families.stable_diffusion_inpaint import StableDiffusionInpaint
from condistill.teachers.families.stable_diffusion_xl import StableDiffusionXL
from condistill.teachers.family import Family
from condistill.teachers.traits import LayerList
from condistill.utils.registry import Registry, load_plugins

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from torch import nn

F = TypeVar("F", bound=Family)

_BUILTIN = (StableDiffusion, StableDiffusionXL, StableDiffusionInpaint, StableDiffusion3, Flux, PixArt, Sana, DiT)
FAMILIES: Registry[type[Family]] = Registry("teacher family", {family.name: family for family in _BUILTIN})
"""All families, by name. A new family is one file, and one entry here or one call of `register_family`."""


def register_family(family: type[F]) -> type[F]:
    """Register a family by its name and return it, so that this is also a class decorator.

    Raises:
        CondistillError: another family has this name.
    """
    FAMILIES.register(family.name, family)
    return family


def family_of_pipeline(pipeline_class: str, *, name: str = "auto") -> type[Family]:
    """Return the first family that supports a pipeline class of diffusers.

    Args:
        name: the family that it must be; `auto`: any.

    Raises:
        CondistillError: no family of this name exists, or none supports the pipeline class.
    """
    load_plugins()
    if name != "auto" and name not in FAMILIES:
        raise CondistillError(f"teacher.family {name!r} does not exist{nearest(name, ('auto', *FAMILIES))}")
    for family in FAMILIES.values():
        if pipeline_class in family.pipeline_classes and name in ("auto", family.name):
            return family
    supported = "; ".join(f"{family.name} ({', '.join(family.pipeline_classes)})" for family in FAMILIES.values())
    by_whom = "no teacher family supports" if name == "auto" else f"teacher.family {name!r} does not support"
    raise CondistillError(f"the teacher is a {pipeline_class}, which {by_whom}; supported: {supported}")


def family_of(denoiser: ModelMixin) -> type[Family]:
    """Return the first family with denoisers of this class.

    Raises:
        CondistillError: no family has.
    """
    load_plugins()
    names = _class_names(denoiser)
    for family in FAMILIES.values():
        if family.denoiser_class in names:
            return family
    supported = ", ".join(sorted({family.denoiser_class for family in FAMILIES.values()}))
    raise CondistillError(f"a {type(denoiser).__name__} cannot be compressed; supported: {supported}")


def is_joint_layer(layer: nn.Module) -> bool:
    """Return whether a layer processes text and image together and returns (text, image)."""
    names = _class_names(layer)
    return any(layers.joint_class in names for layers in _all_layer_lists())


def _all_layer_lists() -> Iterator[LayerList]:
    for family in FAMILIES.values():
        yield from family.layer_lists


def _class_names(module: nn.Module) -> set[str]:
    """Return the names of a module's class and base classes: sharding replaces the class by a subclass."""
    return {kind.__name__ for kind in type(module).__mro__}
