"""Where a student will load, besides diffusers: what other applications accept, as far as their sources show.

These are facts about other people's programs, each with its source and date; nothing is tried here. An application that
is not named for a family was not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condistill.utils.registry import Registry

Config = Mapping[str, Any]
"""Of a denoiser."""


@dataclass(frozen=True)
class Verdict:
    """Whether an application loads a student."""

    loads: bool
    reason: str
    """Why not; or what is needed for it."""


Check = Callable[[Config, Config], Verdict]
"""Called with the configs of the teacher's denoiser and of the student's."""


@dataclass(frozen=True)
class Application:
    """A program that runs diffusion pipelines."""

    name: str
    source: str
    """Where the facts are from, and of when."""
    checks: Mapping[str, Check]
    """By name of the family."""

    def verdict(self, family: str, teacher: Config, student: Config) -> Verdict | None:
        """Return whether a student loads; None: it was not looked up.

        Args:
            family: the name of the teacher's family.
            teacher: the config of its denoiser.
            student: the config of the student's.
        """
        check = self.checks.get(family)
        return check(teacher, student) if check else None


def _widths(config: Config) -> list[int]:
    return list(config.get("block_out_channels") or ())


def _layers(config: Config) -> list[int]:
    """Return the number of layers in every down block of a U-Net."""
    count = config.get("layers_per_block")
    return [count] * len(_widths(config)) if isinstance(count, int) else list(count or ())


def _transformers(config: Config) -> list[int]:
    """Return the number of transformer blocks in each attention of the down blocks of a U-Net; 0 where it has none."""
    counts = config.get("transformer_layers_per_block", 1)
    counts = [counts] * len(_widths(config)) if isinstance(counts, int) else list(counts)
    kinds = config.get("down_block_types") or ()
    return [int(count) if "CrossAttn" in kind else 0 for kind, count in zip(kinds, counts, strict=False)]


def _has_known_width(teacher: Config, student: Config) -> bool:
    """Return whether the stages have the channels of the teacher's, and those of a released U-Net."""
    widths = _widths(student)
    return widths[:1] in ([320], [384]) and widths == _widths(teacher)[: len(widths)]


_ONE_FILE = "as one file, with its layers numbered without gaps"
_WIDTH = Verdict(False, "every U-Net class there demands 320 or 384 channels in the first stage, and its multiples")


def _comfyui_unet(teacher: Config, student: Config) -> Verdict:
    return Verdict(True, _ONE_FILE) if _has_known_width(teacher, student) else _WIDTH


def _comfyui_sdxl(teacher: Config, student: Config) -> Verdict:
    if not _has_known_width(teacher, student):
        return _WIDTH
    if set(_layers(student)) == {1} and _transformers(student) in ([0, 2, 5], [0, 2, 6]):
        return Verdict(True, "it is one of the shapes that are named there (KOALA)")
    return Verdict(False, "SDXL classes there match the transformer blocks of every stage exactly")


def _comfyui_layers(_teacher: Config, _student: Config) -> Verdict:
    return Verdict(True, "it counts the layers; they must be numbered without gaps")


def _comfyui_sd3(_teacher: Config, _student: Config) -> Verdict:
    return Verdict(False, "the number of layers there is a 64th of the width, so none may be missing")


COMFYUI = Application(
    "ComfyUI",
    "comfy/model_detection.py and supported_models.py of October 2025",
    {
        "stable_diffusion": _comfyui_unet,
        "stable_diffusion_xl": _comfyui_sdxl,
        "stable_diffusion_3": _comfyui_sd3,
        "flux": _comfyui_layers,
        "pixart": _comfyui_layers,
    },
)


def _sdcpp_unet(teacher: Config, student: Config) -> Verdict:
    if not _has_known_width(teacher, student):
        return Verdict(False, "the widths of its U-Net are fixed")
    if set(_layers(student)) == {1} and student.get("mid_block_type") is None and len(_widths(student)) == 3:
        return Verdict(True, "as one file, with the numbers of the removed layers left out")
    return Verdict(False, "its small U-Net has one layer per block, three stages and no middle block (b-tiny)")


STABLE_DIFFUSION_CPP = Application(
    "stable-diffusion.cpp", "docs/distilled_sd.md and unet.hpp of August 2026", {"stable_diffusion": _sdcpp_unet}
)

APPLICATIONS: Registry[Application] = Registry(
    "application", {each.name: each for each in (COMFYUI, STABLE_DIFFUSION_CPP)}
)
"""By name, in the order in which they are shown. diffusers loads every student."""


def verdicts(family: str, teacher: Config, student: Config) -> Sequence[tuple[Application, Verdict]]:
    """Return what is known about each application; see `Application.verdict`."""
    found = ((each, each.verdict(family, teacher, student)) for each in APPLICATIONS.values())
    return [(application, verdict) for application, verdict in found if verdict is not None]
