"""Tiny transformers, one of each kind, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.models.attention import JointTransformerBlock

HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
KINDS: dict[str, Any] = {
    "dit": (DiTTransformer2DModel, {**HEADS, "out_channels": 8, "num_layers": 5, "sample_size": 8}),
    "pixart": (
        PixArtTransformer2DModel,
        {**HEADS, "num_layers": 5, "sample_size": 8, "cross_attention_dim": 16, "caption_channels": 12},
    ),
    "sd3": (
        SD3Transformer2DModel,
        {
            **HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 6,
            "dual_attention_layers": (0, 1, 3),
            "qk_norm": "rms_norm",
        },
    ),
    "flux": (
        FluxTransformer2DModel,
        {
            **HEADS,
            "in_channels": 16,
            "num_layers": 5,
            "num_single_layers": 4,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "guidance_embeds": True,
            "axes_dims_rope": (2, 2, 4),
        },
    ),
    "sana": (
        SanaTransformer2DModel,
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "sample_size": 4,
            "patch_size": 1,
        },
    ),
}
BLOCKS = "transformer_blocks"


def inputs_of(denoiser: Any, size: tuple[int, int] = (4, 4), *, batch: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Return keyword arguments of a forward pass for latents of `size`."""
    kind, config = type(denoiser).__name__, denoiser.config
    height, width = size

    def random(*shape: int) -> torch.Tensor:
        if device == "meta":
            return torch.empty(*shape, device="meta")
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))

    tokens = (height // 2) * (width // 2)
    image = (batch, tokens, config.in_channels) if kind.startswith("Flux") else (batch, config.in_channels, *size)
    inputs: dict[str, Any] = {
        "hidden_states": random(*image),
        "timestep": torch.full((batch,), 0.5 if kind.startswith("Flux") else 500, device=device),
    }
    if kind.startswith("DiT"):
        return inputs | {"class_labels": torch.ones(batch, dtype=torch.long, device=device)}
    if kind.startswith(("PixArt", "Sana")):
        resolution = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        return {**inputs, "encoder_hidden_states": random(batch, 5, 12), **(resolution if kind[0] == "P" else {})}
    inputs |= {"encoder_hidden_states": random(batch, 5, 12), "pooled_projections": random(batch, 10)}
    if kind.startswith("Flux"):
        ids = {"img_ids": torch.zeros(tokens, 3, device=device), "txt_ids": torch.zeros(5, 3, device=device)}
        inputs |= {**ids, "guidance": torch.full((batch,), 3.5, device=device)}
    return inputs


def build(kind: str, **overrides: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, config = KINDS[kind]
        transformer = model(**(config | overrides)).eval()
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)  # some layers start at zero, and could not be distinguished
        return transformer


def make_identity(layer: torch.nn.Module) -> None:
    """Replace the forward of a layer by the identity."""

    def forward(hidden_states: Any, *_: Any, **named: Any) -> Any:
        joint = isinstance(layer, JointTransformerBlock) or type(layer).__name__.startswith("Flux")
        return (named["encoder_hidden_states"], hidden_states) if joint else hidden_states

    layer.forward = forward  # type: ignore[method-assign]
