"""Qwen-Image, whose original names are those of diffusers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from condistill.export.single_file.companions import Companions, sdcpp_command
from condistill.export.single_file.layout import Layout, Weights, register_layout
from condistill.export.single_file.renaming import SDCPP, differing, full_config
from condistill.export.source import Shape

_LITERALS = {
    "patch_size": 2,
    "out_channels": 16,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
    "zero_cond_t": False,
    "use_additional_t_cond": False,
    "use_layer3d_rope": False,
}
_COMPANIONS = Companions(
    text_encoders="`qwen_2.5_vl_7b.safetensors`",
    loader="CLIPLoader, type `qwen_image`",
    autoencoder="`qwen_image_vae.safetensors`",
    own_autoencoder="",
    settings="The node ModelSamplingAuraFlow sets the shift of the timesteps, which is 1.15 without it.",
)


@register_layout
class QwenImage(Layout):
    """Qwen-Image: layers are counted, and every width is fixed."""

    denoiser_class = "QwenImageTransformer2DModel"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape."""
        return differing(full_config(shape), _LITERALS)

    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under their own names."""
        yield from weights[shape.denoiser_name].items()

    def metadata(self, shape: Shape) -> dict[str, str]:
        """Return what the header says about the kind of model."""
        return {"modelspec.architecture": "qwen-image"}

    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI."""
        return _COMPANIONS.how_to_load(shape)

    def check_sdcpp(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why stable-diffusion.cpp does not load a pipeline of this shape."""
        return differing(full_config(shape), {**_LITERALS, "in_channels": 64}, SDCPP)

    def in_sdcpp(self, shape: Shape) -> str:
        """Return the command with which stable-diffusion.cpp loads the file, as Markdown."""
        return sdcpp_command(shape, "--vae qwen_image_vae.safetensors --llm qwen_2.5_vl_7b.safetensors")
