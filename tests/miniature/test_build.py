from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer

from condistill.miniature import weights_path
from condistill.miniature.build import DEFAULT_STEPS, MAX_TOKENS, build_denoiser, build_scheduler, build_tokenizer
from condistill.miniature.world import IMAGE_SIZE, TEMPLATES, all_captions, all_scenes
from condistill.teachers.family import Family
from condistill.utils.meta import parameters


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return all_captions()


def tokens(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Return the tokens between the start and the end token."""
    ids: list[int] = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    return ids[1:-1]


def test_every_word_of_every_caption_is_one_token(tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    words = sorted({word for caption in captions for word in caption.split()})
    assert len(words) > 40
    ids = [tokens(tokenizer, word) for word in words]
    assert all(len(word) == 1 for word in ids)
    assert len({word[0] for word in ids}) == len(words)
    one_of_each = all_scenes()[1234]
    for template in range(len(TEMPLATES)):
        caption = one_of_each.caption(template)
        assert len(tokens(tokenizer, caption)) == len(caption.split())


def test_every_caption_fits(tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    assert tokenizer.model_max_length == MAX_TOKENS
    assert max(len(caption.split()) for caption in captions) + 2 <= MAX_TOKENS


@pytest.mark.parametrize("text", ["a zebra", "starfish", "Café Ümlaut", "圆 \U0001f600", "50% off!", "a-b_c"])
def test_other_words_are_split_into_letters_and_are_not_lost(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokens(tokenizer, text)
    assert len(ids) > len(text.split())
    assert tokenizer.unk_token_id not in ids
    back = tokenizer.decode(ids)
    assert re.sub(r"\s", "", back) == re.sub(r"\s", "", text.lower())


def test_an_empty_prompt_has_no_tokens(tokenizer: CLIPTokenizer) -> None:
    assert tokens(tokenizer, "") == []


def test_long_prompts_are_truncated_to_the_length_of_the_encoder(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("red " * 50, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
    assert len(ids) == MAX_TOKENS


def test_a_saved_tokenizer_gives_the_same_tokens(tokenizer: CLIPTokenizer, captions: list[str], tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for text in [*captions[::9000], "a zebra", "圆", ""]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == MAX_TOKENS


def test_the_pipeline_loads_and_generates_with_plain_diffusers(tiny_pipeline_dir: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)
    assert type(pipeline) is StableDiffusionPipeline
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a large red star at the top on snow", num_inference_steps=1).images[0]
    assert image.size == (IMAGE_SIZE, IMAGE_SIZE)


@pytest.mark.slow
def test_the_embedded_teacher_generates_with_plain_diffusers_in_any_dtype() -> None:
    for dtype in ({}, {"torch_dtype": torch.float32}, {"torch_dtype": torch.bfloat16}):
        pipeline = DiffusionPipeline.from_pretrained(weights_path() / "teacher", **dtype)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("a large red star", num_inference_steps=1).images[0].size == (64, 64)


def test_other_prompts_give_other_conditions(tiny_family: Family) -> None:
    prompts = ["a red star", "a blue star", "a zebra", ""]
    embeds = tiny_family.encode(prompts).tensors["prompt_embeds"]
    assert embeds.shape == (4, MAX_TOKENS, 128)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(embeds[i], embeds[j], atol=1e-3)


def test_the_size_and_the_stages_of_the_teacher_can_be_changed() -> None:
    with torch.device("meta"):
        full, tiny = build_denoiser(), build_denoiser(block_out_channels=(16, 32, 32), norm_num_groups=4)
    assert parameters(tiny) < parameters(full) / 5
    assert full.config.block_out_channels == (64, 96, 128)


@pytest.mark.parametrize("steps", [1, 4, DEFAULT_STEPS])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sampling_starts_at_the_noisiest_timestep(steps: int, prediction_type: str) -> None:
    scheduler = build_scheduler(prediction_type)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps[0] == 999
    assert len(scheduler.timesteps) == steps
    assert scheduler.config.prediction_type == prediction_type
