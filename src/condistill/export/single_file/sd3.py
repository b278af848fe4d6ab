"""Stable Diffusion 3 and 3.5 in the layout of their original code."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from condistill.export.single_file.companions import Companions, sdcpp_command
from condistill.export.single_file.layout import Layout, Weights, register_layout
from condistill.export.single_file.renaming import COMFYUI, SDCPP, Blocks, Renaming, differing, full_config
from condistill.export.source import Config, Shape

_HEAD = 64
"""Channels of an attention head; ComfyUI derives heads and layers from the width by it."""
_SHIFT = 3.0
"""Shift of the timesteps in ComfyUI, unless a node changes it."""
_SDCPP_LAYERS = 24
"""Fewest layers that stable-diffusion.cpp builds."""
_SDCPP_FILES = "--vae VAE --clip_l clip_l.safetensors --clip_g clip_g.safetensors --t5xxl t5xxl_fp16.safetensors"
_RENAMING = Renaming(
    {
        "pos_embed": ("pos_embed.pos_embed",),
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
        "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        "final_layer.linear": ("proj_out",),
    },
    {
        "transformer_blocks": Blocks(
            "joint_blocks",
            {
                "x_block.adaLN_modulation.1": ("norm1.linear",),
                "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "x_block.attn.ln_q": ("attn.norm_q",),
                "x_block.attn.ln_k": ("attn.norm_k",),
                "x_block.attn.proj": ("attn.to_out.0",),
                "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
                "x_block.attn2.ln_q": ("attn2.norm_q",),
                "x_block.attn2.ln_k": ("attn2.norm_k",),
                "x_block.attn2.proj": ("attn2.to_out.0",),
                "x_block.mlp.fc1": ("ff.net.0.proj",),
                "x_block.mlp.fc2": ("ff.net.2",),
                "context_block.adaLN_modulation.1": ("norm1_context.linear",),
                "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "context_block.attn.ln_q": ("attn.norm_added_q",),
                "context_block.attn.ln_k": ("attn.norm_added_k",),
                "context_block.attn.proj": ("attn.to_add_out",),
                "context_block.mlp.fc1": ("ff_context.net.0.proj",),
                "context_block.mlp.fc2": ("ff_context.net.2",),
            },
        )
    },
    frozenset({"final_layer.adaLN_modulation.1"}),
)
_COMPANIONS = Companions(
    text_encoders="`clip_l.safetensors`, `clip_g.safetensors` and `t5xxl_fp16.safetensors`",
    loader="TripleCLIPLoader",
    own_text_encoder="text_encoder_3/model.safetensors",
    autoencoder="that of Stable Diffusion 3",
    has_clip=True,
)


def _reasons(config: Config, program: str) -> tuple[str, ...]:
    reasons = differing(config, {"attention_head_dim": _HEAD, "in_channels": 16}, program)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layers = width // _HEAD
    if config["num_layers"] != layers:
        reasons += (
            f"it has {config['num_layers']} layers, and {program} needs {layers}: the width, {width:,}, by {_HEAD}",
        )
    if config["caption_projection_dim"] != width:
        reasons += (f"caption_projection_dim is {config['caption_projection_dim']}, and the width is {width:,}",)
    if config["qk_norm"] not in (None, "rms_norm"):
        reasons += (f"qk_norm is {config['qk_norm']}, and {program} has rms_norm or none",)
    return reasons


@register_layout
class StableDiffusion3(Layout):
    """Stable Diffusion 3 and 3.5: the number of layers follows from the width."""

    denoiser_class = "SD3Transformer2DModel"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape."""
        return _reasons(full_config(shape), COMFYUI)

    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under their original names."""
        last = full_config(shape)["num_layers"] - 1  # its text only modulates: shift and scale as in the final layer
        swapped = frozenset({f"joint_blocks.{last}.context_block.adaLN_modulation.1"})
        return _RENAMING.tensors(weights[shape.denoiser_name], swapped)

    def metadata(self, shape: Shape) -> dict[str, str]:
        """Return what the header says about the kind of model."""
        return {"modelspec.architecture": "stable-diffusion-v3"}

    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI."""
        shift = shape.components.get("scheduler", {}).get("shift", _SHIFT)
        if shift == _SHIFT:
            return _COMPANIONS.how_to_load(shape)
        node = f"The node ModelSamplingSD3 sets the shift of the timesteps to {shift:g}."
        return _COMPANIONS.how_to_load(shape, node)

    def check_sdcpp(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why stable-diffusion.cpp does not load a pipeline of this shape."""
        config = full_config(shape)
        reasons, layers = _reasons(config, SDCPP), config["num_layers"]
        if layers < _SDCPP_LAYERS and not reasons:
            reasons += (f"it has {layers} layers, and {SDCPP} builds {_SDCPP_LAYERS} or more",)
        dual = sorted(config["dual_attention_layers"])
        if dual != list(range(len(dual))):
            reasons += (f"the layers {dual} have two attentions, and {SDCPP} builds them so from the first on",)
        return reasons

    def in_sdcpp(self, shape: Shape) -> str:
        """Return the command with which stable-diffusion.cpp loads the file, as Markdown."""
        return sdcpp_command(shape, _SDCPP_FILES)
