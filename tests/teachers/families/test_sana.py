from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import PROMPTS, check_end_to_end
from diffusers import (
    AutoencoderDC,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling
from condistill.profiling.forwards import evaluations_per_image
from condistill.profiling.macs import macs
from condistill.teachers.families.sana import Sana
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher

TWO = ["a large red star", "two green rings and a small black cube"]


def build_tokenizer() -> GemmaTokenizer:
    """The letters of the prompts, and what they are often joined to."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([prompt.replace(" ", "▁") for prompt in [*PROMPTS, *TWO]], trainer)
    model = json.loads(bpe.to_str())["model"]
    return GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], add_bos_token=True)


def build_pipeline(**transformer: Any) -> SanaPipeline:
    """32x32 images of latents `[8, 16, 16]`."""
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
    tokenizer = build_tokenizer()
    text = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 6, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = SanaPipeline(
            tokenizer=tokenizer,
            text_encoder=Gemma2Model(Gemma2Config(**text, **heads)),
            vae=AutoencoderDC(
                latent_channels=8,
                attention_head_dim=2,
                encoder_block_out_channels=(8, 16),
                decoder_block_out_channels=(8, 16),
                encoder_layers_per_block=(1, 1),
                decoder_layers_per_block=(1, 1),
                encoder_qkv_multiscales=((), ()),
                decoder_qkv_multiscales=((), ()),
                scaling_factor=0.41407,
            ),
            transformer=SanaTransformer2DModel(**(config | transformer)),
            # as the published pipelines have it
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
    for module in (pipeline.vae, pipeline.transformer, pipeline.text_encoder):
        module.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sana") / "pipeline"
    build_pipeline().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def family(directory: Path) -> Family:
    return load_teacher(TeacherSettings(pipeline=str(directory)))


@pytest.fixture(scope="module")
def oracle(directory: Path) -> Any:
    """The same pipeline, loaded by diffusers alone."""
    pipeline = DiffusionPipeline.from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 8, 16, 16, generator=torch.Generator().manual_seed(seed))


def own_call(pipeline: Any, noise: torch.Tensor, steps: int, guidance_scale: float) -> torch.Tensor:
    drawn: torch.Tensor = pipeline(
        prompt=TWO,
        latents=noise,
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
        use_resolution_binning=False,
    ).images
    return drawn


@pytest.mark.parametrize("timestep_scale", [1.0, 0.001])
def test_predictions_lead_where_the_pipelines_own_call_leads(timestep_scale: float) -> None:
    """The family's predictions, guided, through the pipeline's kind of scheduler."""
    family = Sana(build_pipeline(timestep_scale=timestep_scale))
    expected = own_call(family.pipeline, latents(0), 2, 4.0)
    scheduler = DPMSolverMultistepScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(2)
    x_t, condition, null = latents(0), family.encode(TWO), family.encode(["", ""])
    with torch.no_grad():
        for t in scheduler.timesteps:
            said, nothing = (family.predict(family.denoiser, x_t, t.expand(2), c) for c in (condition, null))
            x_t = scheduler.step(nothing + 4.0 * (said - nothing), t, x_t).prev_sample
    torch.testing.assert_close(x_t, expected, rtol=1e-4, atol=1e-4)


def test_samples_are_those_of_the_pipelines_own_call(family: Family, oracle: Any) -> None:
    given = family.sample(family.denoiser, TWO, latents(0), num_inference_steps=2, guidance_scale=4.0)
    assert torch.equal(given, own_call(oracle, latents(0), 2, 4.0))


def test_the_denoiser_hears_from_us_what_it_hears_from_the_pipeline(family: Family) -> None:
    heard: list[dict[str, Any]] = []
    handle = family.denoiser.register_forward_pre_hook(lambda _m, _a, kwargs: heard.append(kwargs), with_kwargs=True)
    try:
        own_call(family.pipeline, latents(0), 2, 4.0)
        for condition in (family.encode(["", ""]), family.encode(TWO)):
            family.predict(family.denoiser, latents(0), heard[0]["timestep"][:2], condition)
    finally:
        handle.remove()
    for name in ("encoder_hidden_states", "encoder_attention_mask", "timestep"):
        assert torch.equal(torch.cat([heard[2][name], heard[3][name]]), heard[0][name]), name


def test_the_solver_steps_as_the_flow_scheduler_of_the_same_shift(family: Family) -> None:
    """To the pipeline's own sampler at first order, on the same noise levels."""
    solver = family.noise.solver
    assert isinstance(solver, FlowMatchEulerDiscreteScheduler)
    assert solver.config.shift == 3.0
    own = DPMSolverMultistepScheduler.from_config(family.pipeline.scheduler.config, solver_order=1)
    own.set_timesteps(4)
    shifted = family.noise.shifted(1 - torch.linspace(1, 0.001, 5))
    torch.testing.assert_close(own.sigmas.flip(0), shifted, rtol=1e-4, atol=1e-4)
    x_t, prediction = latents(0), latents(1)
    for t, now, following in zip(own.timesteps, own.sigmas[:-1], own.sigmas[1:], strict=True):
        expected = own.step(prediction, t, x_t).prev_sample
        exactly = (1000 * now).expand(2), (1000 * following).expand(2)  # which the scheduler cuts to whole numbers
        torch.testing.assert_close(family.noise.step(prediction, x_t, *exactly), expected, rtol=1e-4, atol=1e-4)


def test_noise_is_added_as_the_pipelines_scheduler_adds_it(family: Family) -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(5)
    timesteps = 1000 * scheduler.sigmas[[1, 3]]
    expected = scheduler.add_noise(latents(0), latents(1), scheduler.timesteps[[1, 3]])
    torch.testing.assert_close(
        family.noise.add_noise(latents(0), latents(1), timesteps), expected, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(family.noise.target(latents(0), latents(1), timesteps), latents(1) - latents(0))


def test_training_is_shifted_as_sampling_is(family: Family) -> None:
    timesteps = family.noise.timesteps(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(timesteps, torch.tensor([3 / 1.002, 750.125, 1000.0]), rtol=1e-3, atol=1e-3)


def test_a_scheduler_of_a_flow_is_taken_as_it_is() -> None:
    pipeline = build_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=2.0)
    assert Sana(pipeline).noise.solver.config.shift == 2.0


def test_a_scheduler_of_a_diffusion_is_refused() -> None:
    pipeline = build_pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(CondistillError, match=r"DPMSolverMultistepScheduler.*use_flow_sigmas"):
        Sana(pipeline)


def test_the_empty_prompt_is_what_the_pipeline_guides_against(family: Family, oracle: Any) -> None:
    with torch.no_grad():
        *_, embeds, mask = oracle.encode_prompt(TWO, True)
    assert mask.sum(1).tolist() == [1, 1]
    mixed = family.encode(["", TWO[0], "", TWO[1]])
    for given in (family.encode(["", ""]), mixed[[0, 2]]):
        assert torch.equal(given.tensors["prompt_embeds"], embeds)
        assert torch.equal(given.tensors["prompt_attention_mask"], mask)
    assert torch.equal(mixed[[1, 3]].tensors["prompt_embeds"], family.encode(TWO).tensors["prompt_embeds"])


def test_prompts_are_as_long_as_the_pipeline_pads_them(family: Family) -> None:
    assert family.text_length == 300
    assert family.encode(TWO).tensors["prompt_embeds"].shape == (2, 300, 12)


def test_an_embedding_is_the_mean_of_the_text_less_that_of_the_instruction_alone(family: Any) -> None:
    condition = family._encode([TWO[0], ""], family._instruction)
    embeds, mask = condition.tensors["prompt_embeds"].double(), condition.tensors["prompt_attention_mask"].bool()
    assert mask[0].sum() > mask[1].sum() > 0
    said = embeds[0, mask[0]].mean(0) - embeds[1, mask[1]].mean(0)
    given = family.text_embedding([TWO[0], ""])
    torch.testing.assert_close(given[0].double(), said / said.norm(), rtol=1e-3, atol=1e-4)
    assert not given[1].any()


def test_latents_are_decoded_to_the_pipelines_own_pixels(family: Family, oracle: Any) -> None:
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "use_resolution_binning": False}
    floats = oracle(TWO, latents=latents(4), height=32, width=32, output_type="np", **settings).images
    images = family.decode(own_call(oracle, latents(4), 2, 1.0))
    assert images.shape == (2, 32, 32, 3)
    # half-way values may round either way
    assert np.abs(images - 255.0 * floats).max() <= 0.5 + 1e-2


def test_a_resolution_is_drawn_in_latents_of_the_autoencoder(family: Family) -> None:
    assert family.latent_shape == (8, 16, 16)
    assert Sana(family.pipeline, resolution=20).latent_shape == (8, 10, 10)
    with pytest.raises(CondistillError, match="a multiple of 2 pixels, nearest: 20, 22"):
        Sana(family.pipeline, resolution=21)


@pytest.mark.slow
def test_a_forward_pass_is_counted_from_the_config_alone(family: Family) -> None:
    assert macs(family.denoiser, text_length=300) > macs(family.denoiser, text_length=100) > 0


def test_a_guided_image_takes_two_calls_a_step(family: Family) -> None:
    assert evaluations_per_image(Sampling(3, 4.0), family.denoiser) == 6


def test_a_denoiser_that_is_told_its_guidance_is_refused() -> None:
    with pytest.raises(CondistillError, match="guidance_embeds=True, as Sana-Sprint has"):
        Sana(build_pipeline(guidance_embeds=True))


@pytest.mark.slow
def test_the_whole_way_ends_in_a_student_that_diffusers_draws_with(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5})
    assert len(student.transformer.transformer_blocks) == 2
    size = {"height": 32, "width": 32, "use_resolution_binning": False}
    assert student("a small red star", num_inference_steps=2, output_type="np", **size).images[0].shape == (32, 32, 3)
