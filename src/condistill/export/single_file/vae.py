"""The names of Stable Diffusion's autoencoder in checkpoints, and the shapes that programs build."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from condistill.export.single_file.unet_structure import Kind
from condistill.export.source import Config, Shape

PREFIX = "first_stage_model."
SCALING: dict[Kind, float] = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
"""By which programs multiply latents."""
_SETTINGS: dict[str, tuple[Any, Any]] = {
    "block_out_channels": ((64,), (128, 256, 512, 512)),
    "layers_per_block": (1, 2),
    "latent_channels": (4, 4),
    "in_channels": (3, 3),
    "out_channels": (3, 3),
    "act_fn": ("silu", "silu"),
    "norm_num_groups": (32, 32),
    "mid_block_add_attention": (True, True),
    "use_quant_conv": (True, True),
    "use_post_quant_conv": (True, True),
}
"""By name: the default in diffusers, and what programs build."""
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_PART = re.compile(r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.(.+)")
_OUTSIDE = {"encoder.conv_norm_out": "encoder.norm_out", "decoder.conv_norm_out": "decoder.norm_out"}


def check_vae(shape: Shape, kind: Kind) -> tuple[str, ...]:
    """Return how the autoencoder of a pipeline differs from the one that programs build for a kind of checkpoint."""
    if not shape.components:
        return ()
    config = shape.components.get("vae")
    if config is None:
        return ("it has no vae, which a checkpoint holds",)
    class_name = config.get("_class_name", "AutoencoderKL")
    if class_name != "AutoencoderKL":
        return (f"its vae is an {class_name} instead of an AutoencoderKL",)
    differences = [
        f"{name} {_plain(found)} instead of {_plain(expected)}"
        for name, (default, expected) in _SETTINGS.items()
        if _plain(found := config.get(name, default)) != _plain(expected)
    ]
    differences += [
        f"a {kind}"
        for name in ("down_block_types", "up_block_types")
        for kind in config.get(name, ())
        if kind not in ("DownEncoderBlock2D", "UpDecoderBlock2D")
    ]
    scaling = config.get("scaling_factor", 0.18215)
    if scaling != SCALING[kind]:
        differences.append(f"scaling_factor {scaling} instead of {SCALING[kind]}")
    differences += [
        f"{name} {config[name]}"
        for name in ("shift_factor", "latents_mean", "latents_std")
        if config.get(name) is not None
    ]
    return (f"its vae has {', '.join(differences)}",) if differences else ()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def vae_tensors(config: Config, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights of an autoencoder in a checkpoint, whose attention has convolutions of one pixel."""
    stages = len(config["block_out_channels"])
    for name in weights:
        weight = weights[name]
        is_projection = ".attentions." in name and weight.dim() == 2
        yield PREFIX + vae_name(name, stages), weight[:, :, None, None] if is_projection else weight


def vae_name(name: str, stages: int) -> str:
    """Return the original name of a weight of an autoencoder, which counts the stages of the decoder inwards."""
    module, _, part = name.rpartition(".")
    found = _PART.fullmatch(module)
    if found is None:
        return f"{_OUTSIDE.get(module, module)}.{part}"
    side, place, rest = found[1], found[2], found[3].split(".")
    if place != "mid_block":
        kind, inside = rest[1], rest[2:]
        stage = int(rest[0]) if place == "down_blocks" else stages - 1 - int(rest[0])
        original = f"{place.removesuffix('_blocks')}.{stage}."
        original += f"block.{inside[0]}" if kind == "resnets" else kind.removesuffix("rs")
        layer = inside[1:]
    else:
        original = "mid.attn_1" if rest[0] == "attentions" else f"mid.block_{int(rest[1]) + 1}"
        layer = rest[2:]
    inner = ".".join(layer)
    inner = _ATTENTION.get(inner, inner) if "attn_1" in original else inner.replace("conv_shortcut", "nin_shortcut")
    return f"{side}.{original}.{inner}.{part}"
