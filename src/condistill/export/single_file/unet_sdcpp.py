"""Which U-Nets stable-diffusion.cpp loads: it builds one of a few shapes, and reads every weight of it.

Facts from src/model_loader.cpp, src/model/diffusion/unet.hpp and src/model/vae/auto_encoder_kl.hpp of August 2026. The
kind is chosen by the width of the text encoder, the input channels, and by whether there is an attention in the middle
and in some place on the way up. Widths are read from the file since June 2026, in the proportions of the original.
"""

from __future__ import annotations

from dataclasses import dataclass

from condistill.export.single_file.clip import check_text_encoders
from condistill.export.single_file.unet_comfyui import check_heads, check_schedule
from condistill.export.single_file.unet_structure import (
    Depths,
    Kind,
    UNetStructure,
    complete,
    kind_of,
    unknown_settings,
)
from condistill.export.single_file.vae import check_vae
from condistill.export.source import Shape


@dataclass(frozen=True)
class _Known:
    """A U-Net that is built."""

    title: str
    proportions: tuple[int, ...]
    """Of the widths of the stages."""
    down: tuple[Depths, ...]
    mid: int | None
    up: tuple[Depths, ...]
    takes_inpainting: bool = False

    def fits(self, structure: UNetStructure) -> bool:
        first = structure.widths[0]
        widths = tuple(first * each for each in self.proportions)
        return (structure.widths, structure.down, structure.mid, structure.up) == (
            widths, self.down, self.mid, self.up
        )  # fmt: skip


_WHOLE = _Known(
    "the whole U-Net",
    (1, 2, 4, 4),
    ((1, 1), (1, 1), (1, 1), (0, 0)),
    1,
    ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    takes_inpainting=True,
)
_TINY = _Known("b-tiny", (1, 2, 4), ((1,), (1,), (1,)), None, ((1, 1), (1, 1), (1, 1)))
_SDXL = (
    _Known(
        "the whole U-Net",
        (1, 2, 4),
        ((0, 0), (2, 2), (10, 10)),
        10,
        ((10, 10, 10), (2, 2, 2), (0, 0, 0)),
        takes_inpainting=True,
    ),
    _Known("SSD-1B", (1, 2, 4), ((0, 0), (2, 2), (4, 4)), 0, ((4, 4, 10), (2, 1, 1), (0, 0, 0))),
    _Known("Segmind-Vega", (1, 2, 4), ((0, 0), (1, 1), (2, 2)), 0, ((2, 2, 2), (1, 1, 1), (0, 0, 0))),
)
_KNOWN: dict[Kind, tuple[_Known, ...]] = {"sd1": (_WHOLE, _TINY), "sd2": (_WHOLE, _TINY), "sdxl": _SDXL}
_CONTEXT: dict[Kind, int] = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
_TITLES: dict[Kind, str] = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "SDXL"}


def check_sdcpp(shape: Shape) -> tuple[str, ...]:
    """Return the reasons why stable-diffusion.cpp does not load a pipeline with a U-Net; empty if it does."""
    config = complete(shape.denoiser)
    kind = kind_of(config)
    unknown = unknown_settings(config)
    structure = UNetStructure.of(config)
    known = next((each for each in _KNOWN[kind] if each.fits(structure)), None)
    if known is None:
        return (*unknown, _shapes_known(kind))
    differences = []
    if config["in_channels"] != 4 and not (config["in_channels"] == 9 and known.takes_inpainting):
        differences.append(f"its U-Net has {config['in_channels']} input channels, and {known.title} is built with 4")
    if config["cross_attention_dim"] != _CONTEXT[kind]:
        differences.append(f"its text has {config['cross_attention_dim']} channels instead of {_CONTEXT[kind]}")
    return (
        *unknown,
        *differences,
        *check_heads(config, kind),
        *check_schedule(shape),
        *check_text_encoders(shape, kind),
        *check_vae(shape, kind),
    )


def _shapes_known(kind: Kind) -> str:
    proportions = list(dict.fromkeys(each.proportions for each in _KNOWN[kind]))
    written = " or ".join(":".join(map(str, each)) for each in proportions)
    titles = " and ".join(each.title for each in _KNOWN[kind])
    return (
        f"for {_TITLES[kind]}, stable-diffusion.cpp builds {titles} only, with stages as wide as {written}, and this "
        "U-Net has other layers or widths"
    )
