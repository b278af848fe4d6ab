"""Single files for stable-diffusion.cpp, which keeps the numbers of removed layers free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from condistill.errors import CondistillError
from condistill.export.exporter import Comparison, Exporter, ExportOptions, register_exporter
from condistill.export.single_file.file import compare_single_file, write_single_file
from condistill.export.single_file.layout import LAYOUTS, Layout
from condistill.export.single_file.unet import UNetLayout
from condistill.export.single_file.unet_loading import in_sdcpp
from condistill.export.single_file.unet_sdcpp import check_sdcpp
from condistill.export.source import Shape, Source

_PLACE = re.compile(r"(model\.diffusion_model\.(?:input|output)_blocks)\.(\d+)\.(.+)")


class _OriginalNumbers(UNetLayout):
    """Layers have the numbers that they have where none is removed; not registered, since ComfyUI reads the other."""

    numbering = "original"

    def restored(self, component: str, shape: Shape, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of a component under the names of its class: the gaps are closed, then diffusers reads."""
        return super().restored(component, shape, without_gaps(tensors))

    def check_sdcpp(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why stable-diffusion.cpp does not load a pipeline of this shape."""
        return check_sdcpp(shape)

    def in_sdcpp(self, shape: Shape) -> str:
        """Return the command that loads the file."""
        return in_sdcpp(shape)


def without_gaps(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose layers are counted without gaps; an upsampling alone belongs to the layer before it."""
    places = [found for name in tensors if (found := _PLACE.fullmatch(name))]
    layers: dict[str, dict[int, bool]] = {}
    """By list of layers: the numbers that exist, and whether there is more than an upsampling."""
    for place in places:
        numbers = layers.setdefault(place[1], {})
        numbers[int(place[2])] = numbers.get(int(place[2]), False) or not re.match(r"\d\.conv\.", place[3])
    new: dict[tuple[str, int], int] = {}
    for block, numbers in layers.items():
        count = -1
        for number in sorted(numbers):
            count += numbers[number]
            new[block, number] = count
    renamed = {}
    for name, tensor in tensors.items():
        found = _PLACE.fullmatch(name)
        if found is None:
            renamed[name] = tensor
            continue
        block, number, rest = found[1], int(found[2]), found[3]
        rest = rest if layers[block][number] else re.sub(r"^\d", "2", rest)  # behind a resnet and an attention
        renamed[f"{block}.{new[block, number]}.{rest}"] = tensor
    return renamed


_UNET = _OriginalNumbers()


def _layout(shape: Shape) -> Layout | None:
    """Return the layout of a class of denoiser; transformers have the numbers that ComfyUI reads too."""
    name = shape.denoiser_class
    if name not in LAYOUTS:
        return None
    return _UNET if name == _UNET.denoiser_class else LAYOUTS[name]


def _known(shape: Shape) -> Layout:
    """Return the layout of a class of denoiser.

    Raises:
        CondistillError: it is not known.
    """
    if (layout := _layout(shape)) is None:
        raise CondistillError(_unknown(shape))
    return layout


def _unknown(shape: Shape) -> str:
    return f"the layout in which it reads a {shape.denoiser_class} is not known"


@register_exporter
class StableDiffusionCpp(Exporter):
    """One safetensors file; removed layers of a U-Net leave gaps in the numbering."""

    name = "sdcpp"
    title = "stable-diffusion.cpp"
    summary = "one safetensors file in the numbering of stable-diffusion.cpp"
    sources = "docs/distilled_sd.md, model_loader.cpp and src/model/diffusion of August 2026"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why stable-diffusion.cpp does not load a pipeline of this shape."""
        layout = _layout(shape)
        return (_unknown(shape),) if layout is None else layout.check_sdcpp(shape)

    def write(self, source: Source, directory: Path, options: ExportOptions) -> None:
        """Write the file."""
        write_single_file(_file(source, directory), source, _known(source.shape), dtype=options.dtype)

    def verify(self, source: Source, directory: Path, options: ExportOptions) -> tuple[Comparison, ...]:
        """Compare the weights of the file, renumbered and read by diffusers' conversion, with those of the pipeline."""
        return compare_single_file(_file(source, directory), source, _known(source.shape), dtype=options.dtype)

    def how_to_load(self, shape: Shape) -> str:
        """Return the command that loads the file."""
        return _known(shape).in_sdcpp(shape)


def _file(source: Source, directory: Path) -> Path:
    return directory / f"{source.name}.safetensors"
