"""Parts of tiny random pipelines, built in code: nothing is downloaded, and plain diffusers loads what they are of."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from condistill.miniature.build import build_tokenizer
from condistill.miniature.world import all_captions

LATENT_SIZE = 8
"""Of images of 64x64 pixels."""


clip_tokenizer = cache(build_tokenizer)
"""Trained once: it takes longer than all else."""


def build_t5_tokenizer() -> T5TokenizerFast:
    """The world's own words, one token each; other words fall apart into letters."""
    words = sorted({word for caption in all_captions() for word in caption.split()})
    pieces = [(f"▁{word}", -3.0) for word in words] + [(letter, -9.0) for letter in ("▁", *string.ascii_lowercase)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5TokenizerFast(vocab=special + pieces, extra_ids=0, model_max_length=512)


def build_t5_encoder(tokenizer: T5TokenizerFast, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 2,
            d_ff=2 * width,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def build_clip(
    tokenizer: CLIPTokenizer, width: int, *, projection: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_flow_autoencoder() -> AutoencoderKL:
    """64x64 RGB to 8x8 latents of 4 channels, which are centred and scaled as a flow's are."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8 * LATENT_SIZE,
        scaling_factor=1.5,
        shift_factor=0.06,
    )


def liven(denoiser: torch.nn.Module) -> None:
    """Let it answer to everything: gates and modulations that begin at 0 would hide what it is told."""
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def build_sd3(*, t5: bool = True, scheduler: dict[str, Any] | None = None, **denoiser: Any) -> StableDiffusion3Pipeline:
    """A `StableDiffusion3Pipeline` with random weights, 64x64 images and latents `[4, 8, 8]`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, t5_tokenizer = clip_tokenizer(), build_t5_tokenizer()
        shapes = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_SIZE,
            in_channels=4,
            out_channels=4,
            joint_attention_dim=40,  # wider than both CLIPs together, as the real one
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
            **(shapes | denoiser),
        )
        liven(transformer)
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"shift": 3.0})),
            vae=build_flow_autoencoder(),
            text_encoder=build_clip(tokenizer, 16, projection=True),
            tokenizer=tokenizer,
            text_encoder_2=build_clip(tokenizer, 16, projection=True),
            tokenizer_2=tokenizer,
            text_encoder_3=build_t5_encoder(t5_tokenizer, 40) if t5 else None,
            tokenizer_3=t5_tokenizer if t5 else None,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


DEV = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
SCHNELL = {"shift": 1.0}


def build_flux(
    *, guidance_embeds: bool = True, scheduler: dict[str, Any] | None = None, **denoiser: Any
) -> FluxPipeline:
    """A `FluxPipeline` with random weights; latents `[4, h, w]`, at 8 pixels each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, t5_tokenizer = clip_tokenizer(), build_t5_tokenizer()
        shapes = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
        transformer = FluxTransformer2DModel(
            in_channels=16,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
            **(shapes | denoiser),
        )
        liven(transformer)
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or (DEV if guidance_embeds else SCHNELL))),
            vae=build_flow_autoencoder(),
            text_encoder=build_clip(tokenizer, 16, projection=False),
            tokenizer=tokenizer,
            text_encoder_2=build_t5_encoder(t5_tokenizer, 24),
            tokenizer_2=t5_tokenizer,
            transformer=transformer,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def heard_by(denoiser: torch.nn.Module) -> tuple[list[dict[str, torch.Tensor]], Any]:
    """The tensors that a denoiser is given from now on, call by call, and the hook that sees them, to be removed."""
    heard: list[dict[str, torch.Tensor]] = []

    def hook(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = dict(zip(("hidden_states",), arguments, strict=False)) | named
        heard.append({name: value for name, value in given.items() if isinstance(value, torch.Tensor)})

    return heard, denoiser.register_forward_pre_hook(hook, with_kwargs=True)
