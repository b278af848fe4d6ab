"""Components of tiny pipelines with random weights, built in code: nothing is downloaded."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from functools import cache

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    T5TokenizerFast,
)

from condistill.miniature.build import build_tokenizer
from condistill.miniature.world import all_captions

LATENT_SIZE = 8
"""Height and width of the latents of 64x64 images."""
clip_tokenizer = cache(build_tokenizer)
"""The tokenizer of the miniature's captions, trained once because this takes longer than everything else."""


def build_t5_tokenizer() -> T5TokenizerFast:
    """Build a tokenizer with one token per word of the miniature's captions; other words are split into letters."""
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
    """Build an autoencoder from 64x64 images to latents `[4, 8, 8]`, with a scale and a shift, as flow models have."""
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


def randomize(denoiser: torch.nn.Module) -> None:
    """Give all matrices random weights: gates and modulations that start at 0 would hide the effect of the inputs."""
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def build_small_autoencoder() -> AutoencoderKL:
    """Build an autoencoder from 16x16 images to latents `[4, 8, 8]`."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )


def build_deep_compression_autoencoder() -> AutoencoderDC:
    """Build an autoencoder from 32x32 images to latents `[8, 16, 16]`."""
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=2,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41407,
    )


def build_word_tokenizer(prompts: Sequence[str]) -> T5Tokenizer:
    """Build a T5 tokenizer with one token per word of the prompts."""
    words = sorted({word for prompt in prompts for word in prompt.lower().split()})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *((f"▁{word}", -5.0) for word in words)], extra_ids=0)


def build_gemma_tokenizer(prompts: Sequence[str]) -> GemmaTokenizer:
    """Build a tokenizer with the letters of the prompts and their frequent combinations."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([prompt.replace(" ", "▁") for prompt in prompts], trainer)
    model = json.loads(bpe.to_str())["model"]
    return GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], add_bos_token=True)
