"""Single files for stable-diffusion.cpp, which keeps the numbers of removed blocks free."""

from __future__ import annotations

from pathlib import Path

from condistill.errors import CondistillError
from condistill.export.exporter import Comparison, Exporter, ExportOptions, register_exporter
from condistill.export.single_file.unet import has_known_width, layers_of, stage_widths
from condistill.export.source import Shape, Source


@register_exporter
class StableDiffusionCpp(Exporter):
    """One safetensors file whose removed layers leave gaps in the numbering."""

    name = "sdcpp"
    title = "stable-diffusion.cpp"
    summary = "one safetensors file in the numbering of stable-diffusion.cpp"
    sources = "docs/distilled_sd.md and unet.hpp of August 2026"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why stable-diffusion.cpp does not load a pipeline of this shape."""
        if shape.denoiser_class != "UNet2DConditionModel":
            return (f"the layout of a {shape.denoiser_class} there is not known",)
        if not has_known_width(shape):
            return ("the widths of its U-Net are fixed",)
        config = shape.denoiser
        if set(layers_of(config)) == {1} and config.get("mid_block_type") is None and len(stage_widths(config)) == 3:
            return ()
        return ("its small U-Net has one layer per block, three stages and no middle block (b-tiny)",)

    def write(self, source: Source, directory: Path, options: ExportOptions) -> None:
        """Write the file."""
        raise CondistillError("not built")

    def verify(self, source: Source, directory: Path, options: ExportOptions) -> tuple[Comparison, ...]:
        """Compare the weights of the file with those of the pipeline."""
        raise CondistillError("not built")

    def how_to_load(self, shape: Shape) -> str:
        """Return the command that loads the file."""
        return "Give the file to `sd` as `--model`."
