from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from end_to_end import check_end_to_end
from tiny import build_sd, record_calls
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.families.stable_diffusion import StableDiffusion
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import END

PROMPTS = ["a large red star at the top on snow", ""]


@pytest.fixture(scope="module")
def oracle(tiny_pipeline_dir: Path) -> StableDiffusionPipeline:
    """The pipeline of `tiny_family`, loaded by diffusers alone."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=["epsilon", "v_prediction"])
def family(request: pytest.FixtureRequest, tiny_family: Family, tiny_v_family: Family) -> Family:
    return tiny_family if request.param == "epsilon" else tiny_v_family


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_prediction_is_the_denoisers_output_for_the_encoded_prompt(
    tiny_family: Family, oracle: StableDiffusionPipeline
) -> None:
    timesteps = torch.tensor([3, 977])
    with torch.no_grad():
        embeds, _ = oracle.encode_prompt(PROMPTS, oracle.device, 1, False)
        expected = oracle.unet(latents(0), timesteps, encoder_hidden_states=embeds).sample
        prediction = tiny_family.predict(tiny_family.denoiser, latents(0), timesteps, tiny_family.encode(PROMPTS))
    assert torch.equal(prediction, expected)


def test_an_embedding_is_the_mean_token_less_that_of_the_empty_prompt(
    tiny_family: Family, oracle: StableDiffusionPipeline
) -> None:
    prompts = ["a large red star at the top on snow", "", "a small blue box"]
    with torch.no_grad():
        embeds, _ = oracle.encode_prompt(prompts, oracle.device, 1, False)
    means = embeds.double().mean(1)
    differences = means - means[1]
    embedding = tiny_family.text_embedding(prompts).double()
    for i in (0, 2):
        torch.testing.assert_close(embedding[i], differences[i] / differences[i].norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipelines_call(
    tiny_family: Family, oracle: StableDiffusionPipeline, guidance_scale: float
) -> None:
    settings = {"num_inference_steps": 3, "guidance_scale": guidance_scale}
    expected = oracle(prompt=PROMPTS, latents=latents(2), output_type="latent", **settings).images
    assert torch.equal(tiny_family.sample(tiny_family.denoiser, PROMPTS, latents(2), **settings), expected)


def test_samples_are_guided_away_from_the_unconditional_prediction(family: Family) -> None:
    """An independent sampling loop: DDIM over epsilon_0 + w (epsilon_c - epsilon_0)."""
    scheduler = DDIMScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(3)
    x_t = latents(2)
    condition = family.encode(PROMPTS)
    both = (condition, family.unconditional(condition))
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            conditional, unconditional = (
                family.predict(family.denoiser, x_t, timestep.expand(2), each) for each in both
            )
            guided = unconditional + 4.0 * (conditional - unconditional)
            x_t = scheduler.step(guided, timestep, x_t).prev_sample
    samples = family.sample(family.denoiser, PROMPTS, latents(2), num_inference_steps=3, guidance_scale=4.0)
    torch.testing.assert_close(samples, x_t, rtol=1e-4, atol=1e-4)


def test_noise_that_a_scheduler_adds_depends_on_the_seed_of_the_image_alone() -> None:
    pipeline = build_sd()
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    family = StableDiffusion(pipeline)

    def sample(*seeds: int) -> Tensor:
        n = len(seeds)
        noise = latents(3, 1).expand(n, -1, -1, -1)
        settings = {"num_inference_steps": 2, "guidance_scale": 1.0}
        return family.sample(family.denoiser, [""] * n, noise, seeds=seeds, **settings)

    together = sample(5, 6)
    torch.testing.assert_close(together[1:], sample(6), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_the_pipeline_gets_its_denoiser_back_after_an_error(tiny_family: Family) -> None:
    teacher, other = tiny_family.denoiser, torch.nn.Linear(1, 1)
    used = []

    def use() -> None:
        with tiny_family.using(other) as pipeline:
            used.append(pipeline.unet)
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert used == [other]
    assert tiny_family.denoiser is teacher


def test_latents_are_decoded_to_the_pixels_of_the_pipelines_call(
    tiny_family: Family, oracle: StableDiffusionPipeline
) -> None:
    settings = {"num_inference_steps": 1, "guidance_scale": 1.0}
    expected = oracle(prompt=PROMPTS, latents=latents(4), output_type="np", **settings).images
    images = tiny_family.decode(tiny_family.sample(tiny_family.denoiser, PROMPTS, latents(4), **settings))
    assert np.abs(images - 255.0 * expected).max() <= 0.5 + 1e-3  # half-way values may round either way


def test_the_empty_prompt_is_the_unconditional_input_of_the_pipelines_call(
    tiny_family: Family, oracle: StableDiffusionPipeline
) -> None:
    with torch.no_grad():
        _, negative = oracle.encode_prompt(PROMPTS, oracle.device, 1, True)
    assert torch.equal(tiny_family.encode(["", ""]).tensors["prompt_embeds"], negative)


def test_latents_have_the_shape_of_the_pipelines_call(tiny_family: Family, oracle: StableDiffusionPipeline) -> None:
    samples = oracle(prompt="", output_type="latent", num_inference_steps=1, guidance_scale=1.0).images
    assert tiny_family.latent_shape == tuple(samples.shape[1:])
    assert tiny_family.encode([""]).tensors["prompt_embeds"].shape[1] == tiny_family.text_length


def test_a_u_net_with_the_channels_of_in_painting_is_refused() -> None:
    with pytest.raises(
        CondistillError, match=r"takes 9 channels .* have 4; .* stable_diffusion needs a U-Net that takes 4\."
    ):
        StableDiffusion(build_sd(in_channels=9))


# the guidance scale as an input


@pytest.fixture(scope="module")
def embedded(tiny_family: Family) -> UNet2DConditionModel:
    """A denoiser that takes the guidance scale as an input, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return UNet2DConditionModel.from_config({**tiny_family.denoiser.config, "time_cond_proj_dim": 256}).eval()


@pytest.mark.parametrize("scale", [1.5, 2.3, 7.5, 13.0])
def test_the_guidance_scale_is_embedded_as_in_the_pipelines_call(
    tiny_family: Family, embedded: UNet2DConditionModel, scale: float
) -> None:
    timesteps = torch.tensor([999, 999])
    condition = tiny_family.encode(PROMPTS).with_guidance_scale(torch.full((2,), scale, dtype=torch.float64))
    with record_calls(embedded) as calls, torch.no_grad():
        samples = tiny_family.sample(embedded, PROMPTS, latents(0), num_inference_steps=1, guidance_scale=scale)
        prediction = tiny_family.predict(embedded, latents(0), timesteps, condition)
    assert torch.equal(calls[0].inputs["timestep_cond"], calls[1].inputs["timestep_cond"])
    end = tiny_family.noise.step(prediction, latents(0), timesteps, torch.full_like(timesteps, END))
    torch.testing.assert_close(samples, end, rtol=1e-3, atol=1e-3)


def test_every_sample_has_its_own_guidance_scale_and_other_denoisers_ignore_it(
    tiny_family: Family, embedded: UNet2DConditionModel
) -> None:
    timesteps, condition = torch.tensor([500, 500]), tiny_family.encode(["a star", "a star"])
    x_t = latents(0)[:1].repeat(2, 1, 1, 1)
    with_scale = condition.with_guidance_scale(torch.tensor([2.0, 8.0], dtype=torch.float64))

    def predict(denoiser: Any, condition: Any) -> Tensor:
        with torch.no_grad():
            return tiny_family.predict(denoiser, x_t, timesteps, condition)

    at_2, at_8 = predict(embedded, with_scale)
    assert (at_2 - at_8).abs().max() > 1e-3
    torch.testing.assert_close(predict(embedded, with_scale[[1, 1]]), torch.stack([at_8, at_8]))
    assert torch.equal(predict(tiny_family.denoiser, with_scale), predict(tiny_family.denoiser, condition))


def test_a_whole_run_gives_a_student_that_plain_diffusers_samples(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    student = check_end_to_end(tiny_pipeline_dir, tmp_path, {"width": 0.5})
    image = student("a small red star", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
