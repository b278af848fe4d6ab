"""Single files for ComfyUI, whose U-Nets diffusers' `from_single_file` reads too: layers are numbered without gaps."""

from __future__ import annotations

from pathlib import Path

from condistill.export.exporter import Comparison, Exporter, ExportOptions, register_exporter
from condistill.export.single_file import LAYOUTS
from condistill.export.single_file.file import compare_single_file, write_configs, write_single_file
from condistill.export.single_file.layout import CONFIGS_NAME
from condistill.export.source import Shape, Source


@register_exporter
class ComfyUI(Exporter):
    """One safetensors file in the original layout of the denoiser's class."""

    name = "comfyui"
    title = "ComfyUI"
    summary = "one safetensors file in the original layout, for ComfyUI and diffusers' from_single_file"
    sources = "comfy/model_detection.py and supported_models.py of October 2025"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape."""
        if shape.denoiser_class not in LAYOUTS:
            return (f"the single-file layout of a {shape.denoiser_class} is not known",)
        return LAYOUTS[shape.denoiser_class].check(shape)

    def write(self, source: Source, directory: Path, options: ExportOptions) -> None:
        """Write the file."""
        layout = LAYOUTS[source.shape.denoiser_class]
        write_single_file(_file(source, directory), source, layout, dtype=options.dtype)
        write_configs(directory / CONFIGS_NAME, source, layout)

    def verify(self, source: Source, directory: Path, options: ExportOptions) -> tuple[Comparison, ...]:
        """Compare the weights of the file, read by diffusers' conversion, with those of the pipeline."""
        layout = LAYOUTS[source.shape.denoiser_class]
        return compare_single_file(_file(source, directory), source, layout, dtype=options.dtype)

    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI, and how it is sampled."""
        return LAYOUTS[shape.denoiser_class].how_to_load(shape)


def _file(source: Source, directory: Path) -> Path:
    return directory / f"{source.name}.safetensors"
