"""Write a tiny pipeline as one safetensors file, with the tensor names of the original training code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_OPEN_CLIP = {
    "encoder.layers.": "resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}


def unet_tensors(unet: Any) -> dict[str, Tensor]:
    """Return the tensors of a U-Net, whose blocks all have the same number of layers, under the original names."""
    layers = unet.config.layers_per_block
    state = unet.state_dict()
    with_attention = {int(found[1]) for key in state if (found := re.match(r"up_blocks\.(\d+)\.attentions", key))}
    return {f"model.diffusion_model.{unet_name(key, layers, with_attention)}": tensor for key, tensor in state.items()}


def unet_name(key: str, layers: int, with_attention: set[int]) -> str:
    """Return the original name of a tensor of a U-Net.

    Args:
        layers: per block.
        with_attention: the numbers of the up blocks that have attention.
    """
    for new, old in _UNET.items():
        if key.startswith(f"{new}."):
            return _inner(key.replace(new, old, 1), is_resnet="resnets" in key)
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    assert found, key
    side, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if side == "down":
        place = f"input_blocks.{1 + block * (layers + 1) + (layers if kind == 'downsamplers' else number)}"
    else:
        place = f"output_blocks.{block * (layers + 1) + (layers if kind == 'upsamplers' else number)}"
    if kind == "downsamplers":
        return f"{place}.0.{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        return f"{place}.{2 if block in with_attention else 1}.{rest}"
    return _inner(f"{place}.{1 if kind == 'attentions' else 0}.{rest}", is_resnet=kind == "resnets")


def _inner(key: str, *, is_resnet: bool) -> str:
    if is_resnet:
        for new, old in _RESNET.items():
            key = re.sub(rf"\.{new}\.", f".{old}.", key)
    return key


def vae_tensors(vae: Any) -> dict[str, Tensor]:
    """Return the tensors of an autoencoder under the original names."""
    state, blocks = vae.state_dict(), len(vae.config.block_out_channels)
    found = {}
    for key, tensor in state.items():
        name = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            for new, old in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
                name = name.replace(f".{new}.", f".{old}.")
        is_projection = "mid.attn_1" in name and tensor.dim() == 2
        found[f"first_stage_model.{name}"] = tensor[..., None, None] if is_projection else tensor
    return found


def clip_tensors(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a CLIP text encoder as OpenAI's code names them."""
    state = encoder.state_dict()
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in state.items()}


def open_clip_tensors(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a CLIP text encoder with a projection as OpenCLIP names them."""
    state = {key.removeprefix("text_model."): tensor for key, tensor in encoder.state_dict().items()}
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
    }
    for key, tensor in state.items():
        if not key.startswith("encoder.layers."):
            continue
        name = key
        for new, old in _OPEN_CLIP.items():
            name = name.replace(new, old)
        if ".self_attn." not in name:
            found[f"transformer.{name}"] = tensor
        elif ".q_proj." in name:
            parts = [state[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            name = re.sub(r"\.self_attn\.q_proj\.(\w+)", r".attn.in_proj_\1", name)
            found[f"transformer.{name}"] = torch.cat(parts)
    return {prefix + name: tensor for name, tensor in found.items()}


def tensors_of(pipeline: Any) -> dict[str, Tensor]:
    """Return the tensors of a Stable Diffusion or a Stable Diffusion XL under the original names."""
    found = {**unet_tensors(pipeline.unet), **vae_tensors(pipeline.vae)}
    if getattr(pipeline, "text_encoder_2", None) is None:
        return found | clip_tensors(pipeline.text_encoder, "cond_stage_model.transformer.")
    found |= clip_tensors(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
    return found | open_clip_tensors(pipeline.text_encoder_2, "conditioner.embedders.1.model.")


def write_file(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write tensors as one safetensors file, and return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file, metadata)
    return file


def write_configs(pipeline: Any, directory: Path) -> Path:
    """Write a pipeline's directory without its weights, and return it."""
    pipeline.save_pretrained(directory)
    for file in directory.rglob("*.safetensors"):
        file.unlink()
    return directory
