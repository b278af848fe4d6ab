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


def to_transformers(state: Mapping[str, Tensor], source: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the CLIPConfig of a checkpoint of open_clip, and its tensors with the names of a CLIPModel.

    Only models with two plain transformers and the activation GELU are known: ViT-H, ViT-g and others of LAION.

    Args:
        source: the file, for messages.

    Raises:
        CondistillError: a tensor is missing, or is of no such model.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        config = _config(state)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CondistillError(f"{source} is no CLIP of open_clip ({error}); give the file as published") from error
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "attn_mask":
            continue
        found = _renamed(name, value)
        if not found:
            raise CondistillError(f"{source} has {name}, which a plain CLIP has not; give the file as published")
        renamed |= found
    return config, renamed


def _config(state: Mapping[str, Tensor]) -> Any:
    """Return the config that the shapes of the tensors describe."""
    from transformers import CLIPConfig

    projection = state["text_projection"].shape[1]
    vocabulary, text_width = state["token_embedding.weight"].shape
    width, _, patch, _ = state["visual.conv1.weight"].shape
    side = int((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    text = {
        **_tower(state, "transformer.", text_width),
        "vocab_size": vocabulary,
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "eos_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 2,
    }
    vision = {**_tower(state, "visual.transformer.", width), "image_size": side * patch, "patch_size": patch}
    return CLIPConfig(
        text_config={**text, "projection_dim": projection},
        vision_config={**vision, "projection_dim": projection},
        projection_dim=projection,
    )


def _tower(state: Mapping[str, Tensor], prefix: str, width: int) -> dict[str, Any]:
    """Return the sizes of one transformer."""
    numbers = {int(found[1]) for name in state if (found := re.match(rf"{re.escape(prefix)}resblocks\.(\d+)\.", name))}
    head = _HEAD_WIDTHS.get(width, 64) if prefix.startswith("visual") else 64
    return {
        "hidden_size": width,
        "num_hidden_layers": len(numbers),
        "num_attention_heads": max(width // head, 1),
        "intermediate_size": state[f"{prefix}resblocks.0.mlp.c_fc.weight"].shape[0],
        "hidden_act": "gelu",
    }


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return the tensors that a tensor of open_clip becomes; none for an unknown name."""
    if name == "logit_scale":
        return {name: value.reshape(())}
    if name in _PROJECTIONS:
        return {_PROJECTIONS[name]: value.T.contiguous()}
    if found := _BLOCK.fullmatch(name):
        tower = "vision_model" if found["tower"] else "text_model"
        parts = _of_block(found["rest"], value)
        return {f"{tower}.encoder.layers.{found['number']}.{part}": tensor for part, tensor in parts.items()}
    top = next((old for old in _TOP if name == old or name.startswith(f"{old}.")), None)
    return {} if top is None else {_TOP[top] + name.removeprefix(top): value}


def _of_block(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return the tensors that a tensor of a block becomes: queries, keys and values have one each."""
    stem, _, kind = name.rpartition(".")
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        thirds = zip("qkv", value.chunk(3), strict=True)
        return {f"self_attn.{letter}_proj.{kind}": third.contiguous() for letter, third in thirds}
    return {f"{_PARTS[stem]}.{kind}": value} if stem in _PARTS else {}
