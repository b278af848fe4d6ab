"""Checkpoints with the U-Nets of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from condistill.errors import CondistillError
from condistill.export.single_file.layout import Layout, Weights, register_layout
from condistill.export.source import Config, Shape

_WIDTH = "every U-Net class there demands 320 or 384 channels in the first stage, and its multiples"


def stage_widths(config: Config) -> list[int]:
    """Return the channels of every stage of a U-Net."""
    return list(config.get("block_out_channels") or ())


def layers_of(config: Config) -> list[int]:
    """Return the number of layers in every down block of a U-Net."""
    count = config.get("layers_per_block")
    return [count] * len(stage_widths(config)) if isinstance(count, int) else list(count or ())


def transformer_blocks_of(config: Config) -> list[int]:
    """Return the transformer blocks in each attention of the down blocks of a U-Net; 0 where it has none."""
    counts = config.get("transformer_layers_per_block", 1)
    counts = [counts] * len(stage_widths(config)) if isinstance(counts, int) else list(counts)
    kinds = config.get("down_block_types") or ()
    return [int(count) if "CrossAttn" in kind else 0 for kind, count in zip(kinds, counts, strict=False)]


def has_known_width(shape: Shape) -> bool:
    """Return whether the stages have the channels of the teacher's, if it is known, and those of a released U-Net."""
    widths = stage_widths(shape.denoiser)
    teacher = stage_widths(shape.denoiser if shape.teacher is None else shape.teacher)
    return widths[:1] in ([320], [384]) and widths == teacher[: len(widths)]


@register_layout
class UNetLayout(Layout):
    """The original layout of Stable Diffusion's training code, with text encoders and autoencoder."""

    denoiser_class = "UNet2DConditionModel"
    is_checkpoint = True

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape."""
        if not has_known_width(shape):
            return (_WIDTH,)
        if "XL" not in shape.pipeline_class:
            return ()
        blocks = transformer_blocks_of(shape.denoiser)
        is_whole = blocks == [0, 2, 10] and set(layers_of(shape.denoiser)) == {2}
        if is_whole or (set(layers_of(shape.denoiser)) == {1} and blocks in ([0, 2, 5], [0, 2, 6])):
            return ()
        return ("SDXL classes there match the transformer blocks of every stage exactly",)

    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under their original names."""
        raise CondistillError("not built")

    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI."""
        return "Copy the file to `models/checkpoints` of ComfyUI."
