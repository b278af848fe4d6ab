"""Tiny pipelines with random weights, one per family, which plain diffusers can load."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_parts import (
    LATENT_SIZE,
    build_clip,
    build_deep_compression_autoencoder,
    build_flow_autoencoder,
    build_gemma_tokenizer,
    build_small_autoencoder,
    build_t5_encoder,
    build_t5_tokenizer,
    build_word_tokenizer,
    clip_tokenizer,
    randomize,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from condistill.miniature import build

WORDS = (
    "a small red star",
    "a large blue box",
    "two green rings",
    "a heart on snow",
    "a black cube",
    "a white cone",
)
"""Prompts of the end-to-end tests, whose words all tokenizers know."""
PROMPTS = ("A large red star", "two green rings and a small black cube")
DEV_SCHEDULE = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
SCHNELL_SCHEDULE = {"shift": 1.0}


LABELS = {
    0: "tench, Tinca tinca",
    1: "goldfish",
    2: "great white shark, white shark",
    999: "bath tissue, toilet paper",
}
"""Some classes of ImageNet."""
XL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 40,
    "norm_num_groups": 4,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}


@dataclass(frozen=True)
class TinyPipeline:
    """How to build the tiny pipeline of a family, and prompts that it can encode."""

    build: Callable[[], DiffusionPipeline]
    prompts: tuple[str, str] = PROMPTS
    resolution: int | None = None


def build_sd(prediction_type: str = "epsilon", *, in_channels: int = 4) -> StableDiffusionPipeline:
    """Build a `StableDiffusionPipeline` with 64x64 images and latents `[4, 8, 8]`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        return build.assemble(
            build.build_autoencoder(),
            build.build_text_encoder(tokenizer),
            tokenizer,
            build.build_denoiser(
                in_channels=in_channels, block_out_channels=(16, 32, 32), norm_num_groups=4, attention_head_dim=2
            ),
            build.build_scheduler(prediction_type),
        )


def build_sd_inpaint() -> StableDiffusionInpaintPipeline:
    """Build a `StableDiffusionInpaintPipeline` with 64x64 images and latents `[4, 8, 8]`."""
    return StableDiffusionInpaintPipeline(**build_sd(in_channels=9).components, requires_safety_checker=False)


def build_sdxl() -> StableDiffusionXLPipeline:
    """Build a `StableDiffusionXLPipeline` with 64x64 images and latents `[4, 8, 8]`."""
    tokenizer = clip_tokenizer()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": build.MAX_TOKENS,
        "projection_dim": 20,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StableDiffusionXLPipeline(
            vae=build.build_autoencoder(),
            text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=16, **text)),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, **text)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(**XL_UNET),
            scheduler=EulerDiscreteScheduler(**betas, timestep_spacing="leading"),
        )


def build_sd3(*, t5: bool = True, scheduler: dict[str, Any] | None = None, **denoiser: Any) -> StableDiffusion3Pipeline:
    """Build a `StableDiffusion3Pipeline` with 64x64 images and latents `[4, 8, 8]`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, t5_tokenizer = clip_tokenizer(), build_t5_tokenizer()
        shapes = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_SIZE,
            in_channels=4,
            out_channels=4,
            joint_attention_dim=40,  # wider than both CLIPs together, as in the real model
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
            **(shapes | denoiser),
        )
        randomize(transformer)
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


def build_flux(
    *, guidance_embeds: bool = True, scheduler: dict[str, Any] | None = None, **denoiser: Any
) -> FluxPipeline:
    """Build a `FluxPipeline` with latents `[4, h, w]` of 8 pixels each."""
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
        randomize(transformer)
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                **(scheduler or (DEV_SCHEDULE if guidance_embeds else SCHNELL_SCHEDULE))
            ),
            vae=build_flow_autoencoder(),
            text_encoder=build_clip(tokenizer, 16, projection=False),
            tokenizer=tokenizer,
            text_encoder_2=build_t5_encoder(t5_tokenizer, 24),
            tokenizer_2=t5_tokenizer,
            transformer=transformer,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_pixart(kind: type[DiffusionPipeline] = PixArtAlphaPipeline, **transformer: Any) -> DiffusionPipeline:
    """Build a PixArt pipeline with 16x16 images and latents `[4, 8, 8]`, unless the transformer's config differs."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 6,  # a size condition takes a third of the width for each of its three numbers
        "num_layers": 4,
        "cross_attention_dim": 12,
        "caption_channels": 12,
        "sample_size": 8,
    }
    tokenizer = build_word_tokenizer([*WORDS, *PROMPTS])
    text = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _ready(
            kind(
                tokenizer=tokenizer,
                text_encoder=T5EncoderModel(T5Config(**text, is_encoder_decoder=False)),
                vae=build_small_autoencoder(),
                transformer=PixArtTransformer2DModel(**(config | transformer)),
                # the scheduler of the published pipelines
                scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
            )
        )


def build_sana(**transformer: Any) -> SanaPipeline:
    """Build a `SanaPipeline` with 32x32 images and latents `[8, 16, 16]`."""
    config = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 4,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "sample_size": 16,
    }
    tokenizer = build_gemma_tokenizer([*WORDS, *(prompt.lower() for prompt in PROMPTS)])
    text = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 6, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _ready(
            SanaPipeline(
                tokenizer=tokenizer,
                text_encoder=Gemma2Model(Gemma2Config(**text, **heads)),
                vae=build_deep_compression_autoencoder(),
                transformer=SanaTransformer2DModel(**(config | transformer)),
                # the scheduler of the published pipelines
                scheduler=DPMSolverMultistepScheduler(
                    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
                ),
            )
        )


def build_dit() -> DiTPipeline:
    """Build a `DiTPipeline` with 16x16 images, latents `[4, 8, 8]` and `LABELS`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = DiTPipeline(
            transformer=DiTTransformer2DModel(
                num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=4, sample_size=8
            ),
            vae=build_small_autoencoder(),
            scheduler=DDIMScheduler(clip_sample=False),
            id2label=LABELS,
        )
    pipeline.register_to_config(id2label=LABELS)  # diffusers does not save the labels itself
    return _ready(pipeline)


def _ready(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINY: dict[str, TinyPipeline] = {
    "stable_diffusion": TinyPipeline(build_sd),
    "stable_diffusion_xl": TinyPipeline(build_sdxl),
    "stable_diffusion_inpaint": TinyPipeline(build_sd_inpaint),
    "stable_diffusion_3": TinyPipeline(build_sd3),
    "flux": TinyPipeline(build_flux, resolution=64),
    "pixart": TinyPipeline(build_pixart),
    "sana": TinyPipeline(build_sana),
    "dit": TinyPipeline(build_dit, prompts=("goldfish", "white shark")),
}
"""The tiny pipeline of each family."""


@dataclass(frozen=True)
class Call:
    """One call of a denoiser: its tensor inputs by name, and its output."""

    inputs: dict[str, torch.Tensor]
    output: torch.Tensor


@contextmanager
def record_calls(denoiser: torch.nn.Module) -> Iterator[list[Call]]:
    """Record the calls of a denoiser inside the `with` block."""
    calls: list[Call] = []
    signature = inspect.signature(denoiser.forward)

    def hook(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        inputs = dict(signature.bind(*arguments, **named).arguments)
        inputs |= inputs.pop("added_cond_kwargs", None) or {}
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        calls.append(Call(tensors, output[0]))

    handle = denoiser.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
