from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from end_to_end import check_end_to_end
from tiny import build_sana, record_calls
from torch import Tensor

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling
from condistill.profiling.forwards import evaluations_per_image
from condistill.profiling.macs import macs
from condistill.teachers.families.sana import Sana
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher

PROMPTS = [prompt.lower() for prompt in tiny.PROMPTS]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sana") / "pipeline"
    build_sana().save_pretrained(path, safe_serialization=True)
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


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 8, 16, 16, generator=torch.Generator().manual_seed(seed))


def sample_with_pipeline(pipeline: Any, noise: Tensor, steps: int, guidance_scale: float) -> Tensor:
    """Return the latents of the pipeline's own call."""
    samples: Tensor = pipeline(
        prompt=PROMPTS,
        latents=noise,
        height=32,
        width=32,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
        use_resolution_binning=False,
    ).images
    return samples


@pytest.mark.parametrize("timestep_scale", [1.0, 0.001])
def test_guided_predictions_give_the_samples_of_the_pipelines_call(timestep_scale: float) -> None:
    """An independent sampling loop, with the pipeline's kind of scheduler."""
    family = Sana(build_sana(timestep_scale=timestep_scale))
    expected = sample_with_pipeline(family.pipeline, latents(0), 2, 4.0)
    scheduler = DPMSolverMultistepScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(2)
    x_t, both = latents(0), (family.encode(PROMPTS), family.encode(["", ""]))
    with torch.no_grad():
        for t in scheduler.timesteps:
            conditional, unconditional = (family.predict(family.denoiser, x_t, t.expand(2), c) for c in both)
            guided = unconditional + 4.0 * (conditional - unconditional)
            x_t = scheduler.step(guided, t, x_t).prev_sample
    torch.testing.assert_close(x_t, expected, rtol=1e-4, atol=1e-4)


def test_samples_are_those_of_the_pipelines_call(family: Family, oracle: Any) -> None:
    samples = family.sample(family.denoiser, PROMPTS, latents(0), num_inference_steps=2, guidance_scale=4.0)
    assert torch.equal(samples, sample_with_pipeline(oracle, latents(0), 2, 4.0))


def test_the_denoiser_gets_the_inputs_of_the_pipelines_call(family: Family) -> None:
    with record_calls(family.denoiser) as calls, torch.no_grad():
        sample_with_pipeline(family.pipeline, latents(0), 2, 4.0)
        for condition in (family.encode(["", ""]), family.encode(PROMPTS)):
            family.predict(family.denoiser, latents(0), calls[0].inputs["timestep"][:2], condition)
    expected, unconditional, conditional = (calls[i].inputs for i in (0, 2, 3))
    for name in ("encoder_hidden_states", "encoder_attention_mask", "timestep"):
        assert torch.equal(torch.cat([unconditional[name], conditional[name]]), expected[name]), name


def test_solver_steps_are_those_of_the_pipelines_sampler_at_first_order(family: Family) -> None:
    solver = family.noise.solver
    assert isinstance(solver, FlowMatchEulerDiscreteScheduler)
    assert solver.config.shift == 3.0
    sampler = DPMSolverMultistepScheduler.from_config(family.pipeline.scheduler.config, solver_order=1)
    sampler.set_timesteps(4)
    shifted = family.noise.shifted(1 - torch.linspace(1, 0.001, 5))
    torch.testing.assert_close(sampler.sigmas.flip(0), shifted, rtol=1e-4, atol=1e-4)
    x_t, prediction = latents(0), latents(1)
    for t, sigma, next_sigma in zip(sampler.timesteps, sampler.sigmas[:-1], sampler.sigmas[1:], strict=True):
        expected = sampler.step(prediction, t, x_t).prev_sample
        timesteps = (1000 * sigma).expand(2), (1000 * next_sigma).expand(2)  # not rounded, as the sampler's are
        torch.testing.assert_close(family.noise.step(prediction, x_t, *timesteps), expected, rtol=1e-4, atol=1e-4)


def test_noise_is_added_as_the_pipelines_scheduler_adds_it(family: Family) -> None:
    scheduler = DPMSolverMultistepScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(5)
    timesteps = 1000 * scheduler.sigmas[[1, 3]]
    expected = scheduler.add_noise(latents(0), latents(1), scheduler.timesteps[[1, 3]])
    torch.testing.assert_close(
        family.noise.add_noise(latents(0), latents(1), timesteps), expected, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(family.noise.target(latents(0), latents(1), timesteps), latents(1) - latents(0))


def test_training_timesteps_have_the_shift_of_sampling(family: Family) -> None:
    timesteps = family.noise.timesteps(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(timesteps, torch.tensor([3 / 1.002, 750.125, 1000.0]), rtol=1e-3, atol=1e-3)


def test_a_flow_matching_scheduler_keeps_its_shift() -> None:
    pipeline = build_sana()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=2.0)
    assert Sana(pipeline).noise.solver.config.shift == 2.0


def test_a_diffusion_scheduler_is_refused() -> None:
    pipeline = build_sana()
    pipeline.scheduler = DPMSolverMultistepScheduler()
    with pytest.raises(CondistillError, match=r"DPMSolverMultistepScheduler.*use_flow_sigmas"):
        Sana(pipeline)


def test_the_empty_prompt_is_the_unconditional_input_of_the_pipelines_call(family: Family, oracle: Any) -> None:
    with torch.no_grad():
        *_, embeds, mask = oracle.encode_prompt(PROMPTS, True)
    assert mask.sum(1).tolist() == [1, 1]
    mixed = family.encode(["", PROMPTS[0], "", PROMPTS[1]])
    for condition in (family.encode(["", ""]), mixed[[0, 2]]):
        assert torch.equal(condition.tensors["prompt_embeds"], embeds)
        assert torch.equal(condition.tensors["prompt_attention_mask"], mask)
    assert torch.equal(mixed[[1, 3]].tensors["prompt_embeds"], family.encode(PROMPTS).tensors["prompt_embeds"])


def test_prompts_are_padded_to_the_length_of_the_pipelines_call(family: Family) -> None:
    assert family.text_length == 300
    assert family.encode(PROMPTS).tensors["prompt_embeds"].shape == (2, 300, 12)


def test_an_embedding_is_the_mean_token_less_that_of_the_instruction_alone(family: Any) -> None:
    condition = family._encode([PROMPTS[0], ""], family._instruction)
    embeds, mask = condition.tensors["prompt_embeds"].double(), condition.tensors["prompt_attention_mask"].bool()
    assert mask[0].sum() > mask[1].sum() > 0
    difference = embeds[0, mask[0]].mean(0) - embeds[1, mask[1]].mean(0)
    embedding = family.text_embedding([PROMPTS[0]])[0].double()
    torch.testing.assert_close(embedding, difference / difference.norm(), rtol=1e-3, atol=1e-4)


def test_latents_are_decoded_to_the_pixels_of_the_pipelines_call(family: Family, oracle: Any) -> None:
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "use_resolution_binning": False}
    expected = oracle(PROMPTS, latents=latents(4), height=32, width=32, output_type="np", **settings).images
    images = family.decode(sample_with_pipeline(oracle, latents(4), 2, 1.0))
    assert np.abs(images - 255.0 * expected).max() <= 0.5 + 1e-2  # half-way values may round either way


def test_a_resolution_sets_the_size_of_the_latents(family: Family) -> None:
    assert family.latent_shape == (8, 16, 16)
    assert Sana(family.pipeline, resolution=20).latent_shape == (8, 10, 10)
    with pytest.raises(CondistillError, match="a multiple of 2 pixels, nearest: 20, 22"):
        Sana(family.pipeline, resolution=21)


@pytest.mark.slow
def test_macs_are_counted_from_the_config_alone(family: Family) -> None:
    assert macs(family.denoiser, text_length=300) > macs(family.denoiser, text_length=100) > 0


def test_a_guided_step_takes_two_evaluations(family: Family) -> None:
    assert evaluations_per_image(Sampling(3, 4.0), family.denoiser) == 6


def test_a_denoiser_that_takes_the_guidance_scale_is_refused() -> None:
    with pytest.raises(CondistillError, match="guidance_embeds=True, as Sana-Sprint has"):
        Sana(build_sana(guidance_embeds=True))


@pytest.mark.slow
def test_a_whole_run_gives_a_student_that_plain_diffusers_samples(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5})
    assert len(student.transformer.transformer_blocks) == 2
    size = {"height": 32, "width": 32, "use_resolution_binning": False}
    assert student("a small red star", num_inference_steps=2, output_type="np", **size).images[0].shape == (32, 32, 3)
