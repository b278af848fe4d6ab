from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import PROMPTS, check_end_to_end
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.profiling.macs import macs
from condistill.teachers.families.pixart import PixArt
from condistill.teachers.load import load_teacher

TWO = ["A large red star", "two green rings and a small black cube"]


def build_tokenizer() -> T5Tokenizer:
    words = sorted({word for prompt in [*PROMPTS, *TWO] for word in prompt.lower().split()})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *((f"▁{word}", -5.0) for word in words)], extra_ids=0)


def build_pipeline(kind: type[Any] = PixArtAlphaPipeline, **transformer: Any) -> Any:
    """16x16 images of latents `[4, 8, 8]`, unless the transformer's config says otherwise."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 6,  # sizes take a third of the width each
        "num_layers": 4,
        "cross_attention_dim": 12,
        "caption_channels": 12,
        "sample_size": 8,
    }
    tokenizer = build_tokenizer()
    text = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = kind(
            tokenizer=tokenizer,
            text_encoder=T5EncoderModel(T5Config(**text, is_encoder_decoder=False)),
            vae=AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
            ),
            transformer=PixArtTransformer2DModel(**(config | transformer)),
            # as the published pipelines have it
            scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        )
    for module in (pipeline.vae, pipeline.transformer, pipeline.text_encoder):
        module.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(pipeline: Any, path: Path) -> Path:
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module", params=["alpha", "sigma"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = PixArtAlphaPipeline if request.param == "alpha" else PixArtSigmaPipeline
    return save(build_pipeline(kind), tmp_path_factory.mktemp("pixart") / "pipeline")


@pytest.fixture(scope="module")
def family(directory: Path) -> PixArt:
    loaded = load_teacher(TeacherSettings(pipeline=str(directory)))
    assert isinstance(loaded, PixArt)
    return loaded


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:
    """The same pipeline, loaded by diffusers alone."""
    pipeline = DiffusionPipeline.from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def sized() -> PixArt:
    """A teacher of the kind that is told the image's size."""
    return PixArt(build_pipeline(sample_size=128), resolution=16)


def test_a_tokenizer_that_takes_another_package_names_it(tmp_path: Path) -> None:
    path = save(build_pipeline(), tmp_path / "pipeline")
    (path / "tokenizer" / "tokenizer.json").unlink()
    (path / "tokenizer" / "spiece.model").write_bytes(b"as published pipelines have it")
    with pytest.raises(CondistillError, match=r"cannot be loaded: .* pip install sentencepiece protobuf$"):
        load_teacher(TeacherSettings(pipeline=str(path)))


def latents(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def own_call(pipeline: Any, noise: torch.Tensor, steps: int, guidance_scale: float) -> torch.Tensor:
    drawn: torch.Tensor = pipeline(
        prompt=TWO,
        latents=noise,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
        use_resolution_binning=False,
        clean_caption=False,
    ).images
    return drawn


def by_hand(family: PixArt, noise: torch.Tensor, steps: int, guidance_scale: float) -> torch.Tensor:
    """The family's predictions, guided, through the pipeline's kind of scheduler."""
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    x_t, condition, null = noise, family.encode(TWO), family.encode(["", ""])
    with torch.no_grad():
        for t in scheduler.timesteps:
            said, nothing = (family.predict(family.denoiser, x_t, t.expand(2), c) for c in (condition, null))
            x_t = scheduler.step(nothing + guidance_scale * (said - nothing), t, x_t).prev_sample
    return x_t


def test_predictions_lead_where_the_pipelines_own_call_leads(family: PixArt, oracle: Any) -> None:
    expected = own_call(oracle, latents(0), 2, 4.0)
    torch.testing.assert_close(by_hand(family, latents(0), 2, 4.0), expected, rtol=1e-4, atol=1e-4)
    given = family.sample(family.denoiser, TWO, latents(0), num_inference_steps=2, guidance_scale=4.0)
    assert torch.equal(given, expected)


def test_a_teacher_that_is_told_the_images_size_is_told_what_its_pipeline_tells(sized: PixArt) -> None:
    expected = own_call(sized.pipeline, latents(0), 2, 4.0)
    torch.testing.assert_close(by_hand(sized, latents(0), 2, 4.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("told_sizes", [False, True])
def test_the_denoiser_hears_from_us_what_it_hears_from_the_pipeline(
    told_sizes: bool, family: PixArt, sized: PixArt
) -> None:
    family = sized if told_sizes else family
    heard: list[dict[str, Any]] = []
    handle = family.denoiser.register_forward_pre_hook(lambda _m, _a, kwargs: heard.append(kwargs), with_kwargs=True)
    try:
        own_call(family.pipeline, latents(0), 2, 1.0)
        family.predict(family.denoiser, latents(0), heard[0]["timestep"], family.encode(TWO))
    finally:
        handle.remove()
    theirs, ours = heard[0], heard[2]
    for name in ("encoder_hidden_states", "encoder_attention_mask", "timestep"):
        assert torch.equal(ours[name], theirs[name]), name
    sizes = theirs["added_cond_kwargs"]
    assert (sizes["resolution"] is not None) == told_sizes
    for name in sizes:
        assert ours["added_cond_kwargs"][name] is sizes[name] is None or torch.equal(
            ours["added_cond_kwargs"][name], sizes[name]
        )


def test_only_the_mean_is_predicted_of_an_output_that_has_a_variance(family: PixArt) -> None:
    condition, timesteps = family.encode(TWO), torch.tensor([3, 977])
    with torch.no_grad():
        given = family.predict(family.denoiser, latents(0), timesteps, condition)
        other = copy.deepcopy(family.denoiser)
        other.proj_out.weight.view(2, 2, 8, -1)[:, :, 4:].zero_()
        other.proj_out.bias.view(2, 2, 8)[:, :, 4:].zero_()
        without = family.predict(other, latents(0), timesteps, condition)
    assert given.shape == (2, 4, 8, 8)
    assert torch.equal(given, without)


def test_noise_is_added_by_the_betas_of_the_pipelines_scheduler(family: PixArt) -> None:
    scheduler, timesteps = family.pipeline.scheduler, torch.tensor([0, 500, 999])
    expected = DDPMScheduler(beta_start=0.0001, beta_end=0.02).add_noise(latents(0, 3), latents(1, 3), timesteps)
    torch.testing.assert_close(family.noise.add_noise(latents(0, 3), latents(1, 3), timesteps), expected)
    for ours in (family.noise.solver, family.noise.consistency_solver(50)):
        assert torch.equal(ours.alphas_cumprod, scheduler.alphas_cumprod)
    assert torch.equal(family.noise.alpha_bar(timesteps), scheduler.alphas_cumprod[timesteps])


def test_the_empty_prompt_is_the_unconditional_input_of_the_pipelines_call(family: PixArt, oracle: Any) -> None:
    with torch.no_grad():
        *_, embeds, mask = oracle.encode_prompt(TWO, True, clean_caption=False)
    null = family.encode(["", ""])
    assert torch.equal(null.tensors["prompt_embeds"], embeds)
    assert torch.equal(null.tensors["prompt_attention_mask"], mask)


def test_prompts_are_as_long_as_the_pipeline_pads_them(family: PixArt) -> None:
    length = 120 if isinstance(family.pipeline, PixArtAlphaPipeline) else 300
    assert family.text_length == length
    assert family.encode([""]).tensors["prompt_embeds"].shape == (1, length, 12)


def test_padding_says_nothing_of_a_prompt(family: PixArt) -> None:
    condition = family.encode(["two green rings", ""])
    embeds, mask = condition.tensors["prompt_embeds"].double(), condition.tensors["prompt_attention_mask"].bool()
    assert mask.sum(1).tolist() == [4, 1]
    said = embeds[0, :4].mean(0) - embeds[1, 0]
    given = family.text_embedding(["two green rings", ""])
    torch.testing.assert_close(given[0].double(), said / said.norm(), rtol=1e-4, atol=1e-5)
    assert not given[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"sample_size": 128}, {"use_additional_conditions": True}])
def test_a_forward_pass_is_counted_from_the_config_alone(config: dict[str, Any]) -> None:
    transformer = build_pipeline(**config).transformer
    assert macs(transformer, size=8, text_length=120) > macs(transformer, size=8, text_length=60) > 0


def test_a_teacher_that_wants_sizes_its_pipeline_does_not_tell_is_refused() -> None:
    with pytest.raises(
        CondistillError, match=r"a PixArtSigmaPipeline with sample_size 8 does not give it; set use_add"
    ):
        PixArt(build_pipeline(PixArtSigmaPipeline, use_additional_conditions=True))


def test_another_resolution_is_drawn_and_decoded(family: PixArt) -> None:
    wide = PixArt(family.pipeline, resolution=24)
    assert wide.latent_shape == (4, 12, 12)
    drawn = wide.sample(wide.denoiser, TWO, torch.zeros(2, 4, 12, 12), num_inference_steps=2, guidance_scale=2.0)
    images = wide.decode(drawn)
    assert images.shape == (2, 24, 24, 3)
    assert images.dtype == np.uint8
    with pytest.raises(CondistillError, match="a multiple of 4 pixels, nearest: 16, 20"):
        PixArt(family.pipeline, resolution=18)


@pytest.mark.slow
def test_the_whole_way_ends_in_a_student_that_diffusers_draws_with(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5})
    assert len(student.transformer.transformer_blocks) == 2
    settings = {"num_inference_steps": 2, "use_resolution_binning": False, "clean_caption": False}
    assert student("a small red star", output_type="np", **settings).images[0].shape == (16, 16, 3)
