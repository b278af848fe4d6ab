"""Tiny pipelines with the U-Nets of Stable Diffusion 1, 2 and XL, and their block students, in directories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from tiny import build_sd, build_sdxl
from unets import KINDS, TINY

from condistill.export.source import Source, find_source
from condistill.students.blocks import kept_layers, preset_layers, remove_blocks

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline
Keep = str | Mapping[str, Sequence[int]] | None
_KOALA = {"transformer_layers_per_block": (1, 2, 10)}


def student_of(unet: UNet2DConditionModel, keep: Keep) -> UNet2DConditionModel:
    """Return a block student with its teacher's weights: of a preset, or of lists of layers; None: the teacher."""
    if keep is None:
        return unet
    layers = preset_layers(unet, keep) if isinstance(keep, str) else keep  # type: ignore[arg-type]
    return remove_blocks(unet, kept_layers(unet, layers))


def tiny_checkpoint(kind: str, keep: Keep = None, **unet: Any) -> Pipeline:
    """Build a tiny pipeline: `sd1`, `sd2`, `four-stages` or `sdxl`, with its U-Net or a block student of it."""
    koala = _KOALA if isinstance(keep, str) and keep.startswith("koala") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = UNet2DConditionModel(**(TINY | KINDS[kind] | koala | unet))
    pipeline: Pipeline = build_sdxl() if kind == "sdxl" else build_sd()
    pipeline.unet = student_of(teacher, keep).eval()
    return pipeline


def saved(pipeline: Pipeline, directory: Path, sampling: Mapping[str, Any] | None = None) -> Source:
    """Save a pipeline, and return it as what is exported."""
    pipeline.save_pretrained(directory)
    if sampling is not None:
        (directory / "sampling.json").write_text(json.dumps(dict(sampling)), encoding="utf-8")
    return find_source(str(directory))
