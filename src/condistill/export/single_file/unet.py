"""Checkpoints with the U-Nets of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.export.single_file.clip import TEXT_ENCODERS, text_encoder_tensors
from condistill.export.single_file.layout import Layout, Weights, register_layout
from condistill.export.single_file.unet_comfyui import check_comfyui
from condistill.export.single_file.unet_loading import architecture, in_comfyui, prediction_of
from condistill.export.single_file.unet_names import Numbering, module_names, original_name
from condistill.export.single_file.unet_restore import restored_unet
from condistill.export.single_file.unet_structure import UNetStructure, complete, kind_of
from condistill.export.single_file.vae import vae_tensors
from condistill.export.source import Config, Shape

GUIDANCE = "time_embedding.cond_proj.weight"
"""The projection of the guidance scale, which the original code does not have; without effect where it is 0."""


def unet_tensors(config: Config, weights: Mapping[str, Tensor], numbering: Numbering) -> Iterator[tuple[str, Tensor]]:
    """Yield the original names of a U-Net's weights, and the weights.

    Raises:
        CondistillError: the guidance scale is an input of the U-Net, and has an effect.
    """
    modules = module_names(UNetStructure.of(config), numbering)
    if GUIDANCE in weights and not (guidance := weights[GUIDANCE]).is_meta and bool(guidance.any()):
        raise CondistillError(
            "the U-Net is distilled for a range of guidance scales, which it takes as an input (time_cond_proj_dim), "
            "and the original layout has no such input; export a student of one guidance scale, or use diffusers"
        )
    for name in weights:
        if name != GUIDANCE:
            yield original_name(name, modules), weights[name]


@register_layout
class UNetLayout(Layout):
    """The original layout of Stable Diffusion's training code, with text encoders and autoencoder."""

    denoiser_class = "UNet2DConditionModel"
    is_checkpoint = True
    numbering: Numbering = "contiguous"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why ComfyUI does not load a pipeline of this shape."""
        return check_comfyui(shape)

    def components(self, shape: Shape) -> tuple[str, ...]:
        """Return the components whose weights the file holds."""
        return ("unet", "vae", *(encoder.component for encoder in TEXT_ENCODERS[kind_of(shape.denoiser)]))

    def tensors(self, shape: Shape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under their original names."""
        kind = kind_of(shape.denoiser)
        yield from unet_tensors(shape.denoiser, weights["unet"], self.numbering)
        yield from vae_tensors(shape.components["vae"], weights["vae"])
        for encoder in TEXT_ENCODERS[kind]:
            yield from text_encoder_tensors(encoder, weights[encoder.component])
        if kind == "sdxl" and prediction_of(shape) == "v_prediction":  # programs look for the names alone
            yield "v_pred", torch.empty(0)
            if shape.components["scheduler"].get("rescale_betas_zero_snr"):
                yield "ztsnr", torch.empty(0)

    def restored(self, component: str, shape: Shape, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights of a component under the names of its class, by diffusers' conversion where it can."""
        if component != "unet":
            return super().restored(component, shape, tensors)
        found = dict(restored_unet(shape, tensors))
        if size := shape.denoiser.get("time_cond_proj_dim"):
            width = complete(shape.denoiser)["block_out_channels"][0]
            found[GUIDANCE] = torch.zeros(width, size, dtype=next(iter(tensors.values())).dtype)
        return found

    def configs(self, shape: Shape) -> dict[str, Config]:
        """Return the configs with which diffusers reads the file."""
        configs = super().configs(shape)
        return {**configs, "unet": {**configs["unet"], "time_cond_proj_dim": None}}

    def metadata(self, shape: Shape) -> dict[str, str]:
        """Return what the file's header says about the kind of model."""
        return architecture(shape)

    def how_to_load(self, shape: Shape) -> str:
        """Return where the file belongs in ComfyUI, and with which settings it is sampled."""
        return in_comfyui(shape)
