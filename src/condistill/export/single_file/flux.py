"""FLUX.1 in the layout of its original code."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from condistill.export.single_file.companions import Companions, sdcpp_command
from condistill.export.single_file.layout import Layout, Weights, register_layout
from condistill.export.single_file.renaming import COMFYUI, SDCPP, Blocks, Renaming, differing, full_config
from condistill.export.source import Config, Shape

DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm.scale": ("attn.norm_q.weight",),
    "img_attn.norm.key_norm.scale": ("attn.norm_k.weight",),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm.scale": ("attn.norm_added_q.weight",),
    "txt_attn.norm.key_norm.scale": ("attn.norm_added_k.weight",),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
"""A block that processes text and image side by side, without what gives its shifts and scales."""
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm.scale": ("attn.norm_q.weight",),
    "norm.key_norm.scale": ("attn.norm_k.weight",),
}
"""A block that processes text and image as one sequence, without what gives its shifts and scales."""
_RENAMING = Renaming(
    {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
    {
        "transformer_blocks": Blocks(
            "double_blocks",
            {**DOUBLE, "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)},
        ),
        "single_transformer_blocks": Blocks("single_blocks", {**SINGLE, "modulation.lin": ("norm.linear",)}),
    },
    frozenset({"final_layer.adaLN_modulation.1"}),
)
_SDCPP = {"attention_head_dim": 128, "pooled_projection_dim": 768, "axes_dims_rope": (16, 56, 56)}
"""What stable-diffusion.cpp does not read from the file."""
_SDCPP_CHANNELS = (64, 128, 384)
"""Channels of a token there: of FLUX, of its controls and of Fill."""
_SDCPP_FILES = "--vae ae.safetensors --clip_l clip_l.safetensors --t5xxl t5xxl_fp16.safetensors"
LITERALS = {
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "axes_dims_rope": (16, 56, 56),
}
"""What ComfyUI does not read from the file."""
_COMPANIONS = Companions(
    text_encoders="`clip_l.safetensors` and `t5xxl_fp16.safetensors`",
    loader="DualCLIPLoader, type `flux`",
    own_text_encoder="text_encoder_2/model.safetensors",
    autoencoder="`ae.safetensors`",
    settings="Set cfg to 1. Sampler euler, scheduler simple.",
    has_clip=True,
)


def block_reasons(shape: Shape) -> tuple[str, ...]:
    """Return the reasons against a transformer with FLUX's two kinds of blocks."""
    config = full_config(shape)
    reasons = differing(config, LITERALS) + shared_reasons(config, COMFYUI)
    if config["in_channels"] % 4:
        reasons += (f"in_channels is {config['in_channels']}, and ComfyUI takes multiples of 4",)
    return reasons


def shared_reasons(config: Config, program: str) -> tuple[str, ...]:
    """Return the reasons that hold for each program."""
    reasons: tuple[str, ...] = ()
    channels = (config["out_channels"] or config["in_channels"]) * config["patch_size"] ** 2
    if channels != 64:
        reasons += (f"it returns {channels} channels per token, and {program} builds it with 64 only",)
    if config["num_layers"] < 1 or config["num_single_layers"] < 1:
        reasons += (f"{program} and diffusers recognise it by its first blocks, and it has none of one kind",)
    return reasons


@register_layout
class Flux(Layout):
    """FLUX.1: blocks of both kinds are counted, and every width is fixed."""

    denoiser_class = "FluxTransformer2DModel"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape."""
        return block_reasons(shape)

    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under their original names."""
        return _RENAMING.tensors(weights[shape.denoiser_name])

    def metadata(self, shape: Shape) -> dict[str, str]:
        """Return what the header says about the kind of model."""
        kind = "flux-1-dev" if full_config(shape)["guidance_embeds"] else "flux-1-schnell"
        return {"modelspec.architecture": kind}

    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI."""
        if not full_config(shape)["guidance_embeds"]:
            return _COMPANIONS.how_to_load(shape)
        return _COMPANIONS.how_to_load(
            shape,
            "The guidance scale is set with the node FluxGuidance, and the shift of the timesteps for other sizes than "
            "1024 pixels with ModelSamplingFlux.",
        )

    def check_sdcpp(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why stable-diffusion.cpp does not load a pipeline of this shape."""
        config = full_config(shape)
        reasons = differing(config, _SDCPP, SDCPP) + shared_reasons(config, SDCPP)
        if config["in_channels"] not in _SDCPP_CHANNELS:
            reasons += (f"in_channels is {config['in_channels']}, and {SDCPP} has 64, 128 and 384",)
        return reasons

    def in_sdcpp(self, shape: Shape) -> str:
        """Return the command with which stable-diffusion.cpp loads the file, as Markdown."""
        return sdcpp_command(shape, _SDCPP_FILES, cfg=False, guidance=full_config(shape)["guidance_embeds"])
