"""PixArt in the layout of its original code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from condistill.export.single_file.companions import Companions
from condistill.export.single_file.layout import Layout, Weights, register_layout
from condistill.export.single_file.renaming import Blocks, Renaming, differing, full_config
from condistill.export.source import Shape

_RENAMING = Renaming(
    {
        "x_embedder.proj": ("pos_embed.proj",),
        "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
        "csize_embedder.mlp.0": ("adaln_single.emb.resolution_embedder.linear_1",),
        "csize_embedder.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
        "ar_embedder.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
        "ar_embedder.mlp.2": ("adaln_single.emb.aspect_ratio_embedder.linear_2",),
        "t_block.1": ("adaln_single.linear",),
        "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
        "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
        "final_layer.scale_shift_table": ("scale_shift_table",),
        "final_layer.linear": ("proj_out",),
    },
    {
        "transformer_blocks": Blocks(
            "blocks",
            {
                "scale_shift_table": ("scale_shift_table",),
                "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                "attn.proj": ("attn1.to_out.0",),
                "cross_attn.q_linear": ("attn2.to_q",),
                "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
                "cross_attn.proj": ("attn2.to_out.0",),
                "mlp.fc1": ("ff.net.0.proj",),
                "mlp.fc2": ("ff.net.2",),
            },
        )
    },
)
_LITERALS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "patch_size": 2,
    "caption_channels": 4096,
}
_SIZE = 64
"""Latents of the size that positions are scaled to."""
_COMPANIONS = Companions(
    text_encoders="`t5xxl_fp16.safetensors`",
    loader="CLIPLoader, type `pixart`",
    own_text_encoder="text_encoder/model.safetensors",
    autoencoder="that of SDXL for PixArt-Sigma, of Stable Diffusion 1 for PixArt-Alpha",
    diffusers_reads=False,
)


def has_conditions(shape: Shape) -> bool:
    """Return whether the size of the image is an input of the denoiser."""
    config = full_config(shape)
    given = config["use_additional_conditions"]
    return bool(config["sample_size"] == 128 if given is None else given)


@register_layout
class PixArt(Layout):
    """PixArt: layers are counted, and every width is fixed."""

    denoiser_class = "PixArtTransformer2DModel"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape."""
        config = full_config(shape)
        reasons = differing(config, _LITERALS)
        if config["out_channels"] != 2 * config["in_channels"]:
            reasons += (f"out_channels is {config['out_channels']}, and ComfyUI builds it with 8 only",)
        size, scale = config["sample_size"], config["interpolation_scale"]
        scale = size // _SIZE if scale is None else scale
        if size % _SIZE or scale != size // _SIZE:
            reasons += (
                f"its positions are those of {size} latents by {scale}, and ComfyUI has {_SIZE} by 1, {2 * _SIZE} by 2 "
                "and so on",
            )
        if "Alpha" in shape.pipeline_class and not has_conditions(shape):
            reasons += (
                "ComfyUI takes a PixArt without the size of the image as an input for PixArt-Sigma, whose latents have "
                "another scale",
            )
        return reasons

    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under their original names."""
        return _RENAMING.tensors(weights[shape.denoiser_name])

    def restored(self, component: str, shape: Shape, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights under their names in diffusers, which has no conversion for this class."""
        return _RENAMING.restored(tensors)

    def metadata(self, shape: Shape) -> dict[str, str]:
        """Return what the header says about the kind of model."""
        return {"modelspec.architecture": f"pixart-{'alpha' if has_conditions(shape) else 'sigma'}"}

    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI."""
        return _COMPANIONS.how_to_load(shape)
