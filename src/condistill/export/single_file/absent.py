"""Classes of denoisers that ComfyUI does not have, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from condistill.errors import CondistillError
from condistill.export.single_file.layout import Layout, Weights, register_layout
from condistill.export.source import Shape


class Absent(Layout):
    """A class that no single file is written of."""

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reason, which holds for every shape."""
        return (f"ComfyUI has no model of the class {self.denoiser_class}",)

    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Refuse to write."""
        raise CondistillError(self.check(shape)[0])

    def how_to_load(self, shape: Shape) -> str:
        """Return the reason."""
        return self.check(shape)[0]


@register_layout
class Sana(Absent):
    """Sana, which needs an extension of ComfyUI."""

    denoiser_class = "SanaTransformer2DModel"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reason."""
        return ("ComfyUI has no Sana; its autoencoder and its linear attention are known to extensions only",)


@register_layout
class DiT(Absent):
    """DiT, whose condition is a class of ImageNet."""

    denoiser_class = "DiTTransformer2DModel"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reason."""
        return ("ComfyUI has no DiT: its models are conditioned on text, and DiT on a class of ImageNet",)
