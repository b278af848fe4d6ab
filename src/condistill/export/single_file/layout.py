"""The contract of a layout: how single files name the weights of one class of denoiser, and which shapes load.

Adding a layout is one file with a subclass of `Layout` and one line in `export/single_file/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, TypeVar

from torch import Tensor

from condistill.export.source import Shape, Source
from condistill.utils.registry import Registry


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
    def tensors(self, source: Source) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each weight in the file and the weight, contiguous, in the dtype of the pipeline."""


LAYOUTS: Registry[Layout] = Registry("layout")
"""By class of the denoiser."""
AnyLayout = TypeVar("AnyLayout", bound=type[Layout])


def register_layout(kind: AnyLayout) -> AnyLayout:
    """Add a layout to the registry; a class decorator."""
    LAYOUTS.register(kind.denoiser_class, kind())
    return kind
