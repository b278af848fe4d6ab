"""Checkpoints of open_clip as models of transformers: the config follows from the shapes, and tensors are renamed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from condistill.errors import CondistillError

_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Channels of a head in the image tower by its width, where it is not 64: ViT-H, ViT-g, ViT-bigG."""
_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_IGNORED = ("attn_mask",)
"""Buffers that follow from the config."""
_TOP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_BLOCK = re.compile(r"(?P<tower>visual\.)?transformer\.resblocks\.(?P<number>\d+)\.(?P<rest>.+)")


Shapes = Mapping[str, tuple[int, ...]]


def config_of(shapes: Shapes, source: str) -> Any:
    """Return the CLIPConfig that the shapes of a checkpoint of open_clip describe.

    Only models with two plain transformers and the activation GELU are known: ViT-H, ViT-g and others of LAION.

    Args:
        source: the setting and the file, for messages.

    Raises:
        CondistillError: a tensor is missing, or is of no such model.
    """
    from transformers import CLIPConfig

    shapes = {name.removeprefix("module."): shape for name, shape in shapes.items()}
    for name in shapes:
        if name not in _IGNORED and not _new_names(name):
            raise CondistillError(f"{source} has {name}, which a plain CLIP has not; give the file as published")
    try:
        projection = shapes["text_projection"][1]
        vocabulary, text_width = shapes["token_embedding.weight"]
        width, _, patch, _ = shapes["visual.conv1.weight"]
        side = int((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
        text = {
            **_tower(shapes, "transformer.", text_width),
            "vocab_size": vocabulary,
            "max_position_embeddings": shapes["positional_embedding"][0],
            "eos_token_id": vocabulary - 1,
            "bos_token_id": vocabulary - 2,
        }
        vision = {**_tower(shapes, "visual.transformer.", width), "image_size": side * patch, "patch_size": patch}
    except (KeyError, ValueError, IndexError) as error:
        raise CondistillError(f"{source} is no CLIP of open_clip ({error}); give the file as published") from error
    return CLIPConfig(
        text_config={**text, "projection_dim": projection},
        vision_config={**vision, "projection_dim": projection},
        projection_dim=projection,
    )


def to_transformers(state: Mapping[str, Tensor], source: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the CLIPConfig of a checkpoint of open_clip, and its tensors with the names of a CLIPModel.

    Raises:
        CondistillError: see `config_of`.
    """
    config = config_of({name: tuple(value.shape) for name, value in state.items()}, source)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        renamed |= _renamed(name.removeprefix("module."), value)
    return config, renamed


def _tower(shapes: Shapes, prefix: str, width: int) -> dict[str, Any]:
    """Return the sizes of one transformer."""
    numbers = {int(found[1]) for name in shapes if (found := re.match(rf"{re.escape(prefix)}resblocks\.(\d+)\.", name))}
    head = _HEAD_WIDTHS.get(width, 64) if prefix.startswith("visual") else 64
    return {
        "hidden_size": width,
        "num_hidden_layers": len(numbers),
        "num_attention_heads": max(width // head, 1),
        "intermediate_size": shapes[f"{prefix}resblocks.0.mlp.c_fc.weight"][0],
        "hidden_act": "gelu",
    }


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return the tensors that a tensor of open_clip becomes; none for one that is not needed."""
    names = [] if name in _IGNORED else _new_names(name)
    if name == "logit_scale":
        value = value.reshape(())
    if name in _PROJECTIONS:
        value = value.T
    parts = value.chunk(len(names)) if len(names) > 1 else [value] * len(names)
    return {new: part.contiguous() for new, part in zip(names, parts, strict=True)}


def _new_names(name: str) -> list[str]:
    """Return what a tensor of open_clip is called in a CLIPModel; queries, keys and values are one tensor there.

    Returns:
        one name or three; none for an unknown name.
    """
    if name == "logit_scale":
        return [name]
    if name in _PROJECTIONS:
        return [_PROJECTIONS[name]]
    if found := _BLOCK.fullmatch(name):
        block = f"{'vision_model' if found['tower'] else 'text_model'}.encoder.layers.{found['number']}"
        stem, _, kind = found["rest"].rpartition(".")
        if found["rest"].startswith("attn.in_proj_"):
            kind = found["rest"].removeprefix("attn.in_proj_")
            return [f"{block}.self_attn.{letter}_proj.{kind}" for letter in "qkv"]
        return [f"{block}.{_PARTS[stem]}.{kind}"] if stem in _PARTS else []
    top = next((old for old in _TOP if name == old or name.startswith(f"{old}.")), None)
    return [] if top is None else [_TOP[top] + name.removeprefix(top)]
