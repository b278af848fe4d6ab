"""The miniature teacher, untrained: every part of a Stable Diffusion pipeline, a thousand times smaller."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from condistill.miniature.world import IMAGE_SIZE, all_captions

MAX_TOKENS = 20  # the longest caption has 14 words; with a start and an end token 16
TEXT_WIDTH = 128
DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 3.0
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer with one token per word of the world; any other word is split into letters."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=letters,
        show_progress=False,
        special_tokens=[f"{letter}</w>" for letter in letters],
    )
    bpe.train_from_iterator(all_captions(), trainer)
    vocabulary = bpe.get_vocab()
    merges = [tuple(pair) for pair in _merges(bpe)]
    ordered = sorted(vocabulary, key=lambda token: vocabulary[token])
    vocab = {token: i for i, token in enumerate([*ordered, _START, _END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _merges(bpe: Tokenizer) -> list[list[str]]:
    import json

    merges: list[list[str]] = json.loads(bpe.to_str())["model"]["merges"]
    return merges


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a CLIP text encoder of two layers with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_autoencoder() -> AutoencoderKL:
    """Return an autoencoder from 64x64 RGB images to 8x8 latents of 4 channels."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    )


def build_denoiser(**overrides: Any) -> UNet2DConditionModel:
    """Return a U-Net of three stages, two layers per block; all but the innermost stage have cross-attention."""
    config: dict[str, Any] = {
        "sample_size": IMAGE_SIZE // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (64, 96, 128),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(config | overrides))


def build_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """Return a DDIM scheduler with Stable Diffusion's noise schedule; sampling starts at timestep 999."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type=prediction_type,
    )


def assemble(
    autoencoder: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    denoiser: UNet2DConditionModel,
    scheduler: DDIMScheduler | None = None,
) -> StableDiffusionPipeline:
    """Return the pipeline of these parts, as diffusers would load it."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler or build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
