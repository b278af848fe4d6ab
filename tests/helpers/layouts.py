"""Shapes and weights of denoisers for layouts of single files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from full_size import DATA
from tiny import build_sd3
from tiny_transformers import build

from condistill.export.single_file import LAYOUTS
from condistill.export.source import Shape
from condistill.utils.meta import plain_config

PIPELINES = {
    "FluxTransformer2DModel": "FluxPipeline",
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "PixArtTransformer2DModel": "PixArtSigmaPipeline",
    "QwenImageTransformer2DModel": "QwenImagePipeline",
    "SanaTransformer2DModel": "SanaPipeline",
    "DiTTransformer2DModel": "DiTPipeline",
}
"""By class of the transformer."""
SD35_LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
TINY_QWEN: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}


def on_meta(denoiser_class: str, config: dict[str, Any]) -> Any:
    """Return a denoiser without weights."""
    with torch.device("meta"):
        return getattr(diffusers, denoiser_class)(**config)


def shape_of(denoiser: Any, pipeline_class: str | None = None) -> Shape:
    """Return what is known of a pipeline with a denoiser."""
    name, config = type(denoiser).__name__, plain_config(denoiser)
    return Shape(
        pipeline_class or PIPELINES[name],
        name,
        config,
        components={"transformer": config},
        classes={"transformer": ("diffusers", name)},
    )


def config_of(teacher: str) -> tuple[str, dict[str, Any]]:
    """Return the class and the config of the denoiser of a full-size teacher."""
    config = json.loads((DATA / teacher / "transformer" / "config.json").read_text(encoding="utf-8"))
    return config.pop("_class_name"), config


def original(denoiser: Any, weights: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the weights of a transformer, or others of its names, as a single file has them."""
    shape = shape_of(denoiser)
    state = denoiser.state_dict() if weights is None else weights
    return dict(LAYOUTS[shape.denoiser_class].tensors(shape, {"transformer": state}))


def write_sd3(folder: Path, pipeline_class: str = "StableDiffusion3Pipeline") -> Path:
    """Write a Stable Diffusion 3 whose transformer is small and still has a shape that ComfyUI knows."""
    config: dict[str, Any] = {"attention_head_dim": 64, "num_layers": 2, "in_channels": 16, "out_channels": 16}
    pipeline = build_sd3()
    pipeline.transformer = build("sd3", **config, caption_projection_dim=128, dual_attention_layers=(0,))
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline_class}), encoding="utf-8")
    return folder


def narrow_weights(denoiser: Any) -> dict[str, torch.Tensor]:
    """Return random weights of the names of a denoiser on the meta device; matrices have 2 columns only."""
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(*(each.shape if each.dim() < 2 else (each.shape[0], 2)), generator=random)
        for name, each in denoiser.state_dict().items()
    }


def published(file: Path) -> dict[str, list[int]]:
    """Return the names and shapes of the weights of a published file.

    They are stored with `{0..18}` for numbers in a row.
    """
    stored = json.loads(file.read_text(encoding="utf-8"))
    names = dict(each for row in stored["weights"].items() for each in _spelled_out(*row))
    assert len(names) == stored["count"]
    return names


def _spelled_out(name: str, shape: list[int]) -> list[tuple[str, list[int]]]:
    if not (found := re.search(r"\{(\d+)\.\.(\d+)\}", name)):
        return [(name, shape)]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [(name[: found.start()] + str(number) + name[found.end() :], shape) for number in numbers]
