"""The names of CLIP text encoders in checkpoints, and the shapes that programs build."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from condistill.export.single_file.unet_structure import Kind
from condistill.export.source import Shape

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 512,
    "layer_norm_eps": 1e-5,
}
"""Of transformers, for settings that a config leaves out."""
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
)
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_IN_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a kind of checkpoint."""

    component: str
    prefix: str
    is_open_clip: bool
    """Whether its weights have the names of OpenCLIP, which joins the projections of an attention."""
    sizes: tuple[Any, ...]
    """Of the text encoder that programs build, in the order of `_SIZES`."""


_CLIP_L = (49408, 768, 3072, 12, 12, 77, "quick_gelu")
_OPEN_CLIP_H = (49408, 1024, 4096, 23, 16, 77, "gelu")
"""Without the last layer, which Stable Diffusion 2 does not use and diffusers does not keep."""
_OPEN_CLIP_BIGG = (49408, 1280, 5120, 32, 20, 77, "gelu")
TEXT_ENCODERS: dict[Kind, tuple[TextEncoder, ...]] = {
    "sd1": (TextEncoder("text_encoder", "cond_stage_model.transformer.", False, _CLIP_L),),
    "sd2": (TextEncoder("text_encoder", "cond_stage_model.model.", True, _OPEN_CLIP_H),),
    "sdxl": (
        TextEncoder("text_encoder", "conditioner.embedders.0.transformer.", False, _CLIP_L),
        TextEncoder("text_encoder_2", "conditioner.embedders.1.model.", True, _OPEN_CLIP_BIGG),
    ),
}


def check_text_encoders(shape: Shape, kind: Kind) -> tuple[str, ...]:
    """Return how the text encoders of a pipeline differ from those that programs build for a kind of checkpoint."""
    reasons = []
    for encoder in TEXT_ENCODERS[kind] if shape.components else ():
        config = shape.components.get(encoder.component)
        if config is None:
            reasons.append(f"it has no {encoder.component}, which a checkpoint holds")
            continue
        config = {**_DEFAULTS, **config}
        differences = [
            f"{name} {config[name]} instead of {size}"
            for name, size in zip(_SIZES, encoder.sizes, strict=True)
            if config[name] != size
        ]
        if differences:
            reasons.append(f"its {encoder.component} has {', '.join(differences)}")
    return tuple(reasons)


def text_encoder_tensors(encoder: TextEncoder, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights of a text encoder in a checkpoint.

    Args:
        weights: under the names of transformers, with the prefix `text_model.`.
    """
    for name in weights:
        if not encoder.is_open_clip:
            yield encoder.prefix + name, weights[name]
        elif (found := _open_clip(name, weights)) is not None:
            yield encoder.prefix + found[0], found[1]


def _open_clip(name: str, weights: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """Return OpenCLIP's name of a weight, and the weight; None for those that are joined to another one."""
    if name == "text_projection.weight":
        return "text_projection", weights[name].T
    if name in _OUTSIDE:
        return _OUTSIDE[name], weights[name]
    found = _IN_LAYER.fullmatch(name)
    assert found, name
    layer, module, part = found[1], found[2], found[3]
    if module in _LAYER:
        return f"transformer.resblocks.{layer}.{_LAYER[module]}.{part}", weights[name]
    if module != "self_attn.q_proj":
        return None
    joined = [weights[name.replace("q_proj", each)] for each in ("q_proj", "k_proj", "v_proj")]
    return f"transformer.resblocks.{layer}.attn.in_proj_{part}", torch.cat(joined)
