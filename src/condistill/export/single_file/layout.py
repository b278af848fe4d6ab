"""The contract of a layout: how single files name the weights of one class of denoiser, and which shapes load.

Adding a layout is one file with a subclass of `Layout` and one line in `export/single_file/__init__.py`. A layout sees
configs and named tensors, so that it gives the names and shapes of a file on the meta device too, without any weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, TypeVar

from torch import Tensor

from condistill.export.source import Config, Shape
from condistill.utils.registry import Registry

Weights = Mapping[str, Mapping[str, Tensor]]
"""By component: its weights under the names of its class in diffusers or transformers."""
CONFIGS_NAME = "configs"
"""Folder of what diffusers needs besides the file: configs and tokenizers."""


class Layout(ABC):
    """The original names of the weights of a class of denoiser, as ComfyUI reads them."""

    denoiser_class: ClassVar[str]
    """diffusers class of the denoiser."""
    is_checkpoint: ClassVar[bool] = False
    """Whether the file holds text encoders and autoencoder too; otherwise it holds the denoiser alone."""

    @abstractmethod
    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape; empty if it does."""

    @abstractmethod
    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each weight in the file, and the weight.

        It is called twice: first with weights on the meta device, for names and shapes, and then with weights that are
        read from the disk one at a time. The writer makes them contiguous and casts them to one dtype.
        """

    def components(self, shape: Shape) -> tuple[str, ...]:
        """Return the components whose weights the file holds."""
        return (shape.denoiser_name,)

    def restored(self, component: str, shape: Shape, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of a component under the names of its class, from those of the file.

        The export is checked by it, so it shares no code with `tensors`: by default it is diffusers' own conversion.
        """
        from condistill.export.single_file.restore import restore_by_diffusers

        return restore_by_diffusers(component, shape, tensors)

    def configs(self, shape: Shape) -> dict[str, Config]:
        """Return the configs with which diffusers reads the file, by component, without paths of this machine."""
        configs = shape.components if self.is_checkpoint else {shape.denoiser_name: shape.denoiser}
        return {
            component: {key: value for key, value in config.items() if key != "_name_or_path"}
            for component, config in configs.items()
        }

    def metadata(self, shape: Shape) -> dict[str, str]:
        """Return what the file's header says about the kind of model, such as `modelspec.architecture`."""
        return {}

    @abstractmethod
    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI, and with which settings it is sampled, as Markdown.

        `CONFIGS_NAME` is the folder of the configs, next to the file.
        """

    def check_sdcpp(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why stable-diffusion.cpp does not load a pipeline of this shape; empty if it does.

        It reads transformers in the layout of ComfyUI, as far as it knows their class.
        """
        return (f"the layout in which it reads a {self.denoiser_class} is not known",)

    def in_sdcpp(self, shape: Shape) -> str:
        """Return the command with which stable-diffusion.cpp loads the file, as Markdown."""
        raise NotImplementedError(self.denoiser_class)


LAYOUTS: Registry[Layout] = Registry("layout")
"""By class of the denoiser."""
AnyLayout = TypeVar("AnyLayout", bound=type[Layout])


def register_layout(kind: AnyLayout) -> AnyLayout:
    """Add a layout to the registry; a class decorator."""
    LAYOUTS.register(kind.denoiser_class, kind())
    return kind
