from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from end_to_end import check_end_to_end
from tiny import build_sd3, record_calls
from torch import Tensor

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.save import save_pipeline
from condistill.profiling.macs import macs
from condistill.teachers.families.stable_diffusion_3 import StableDiffusion3
from condistill.teachers.load import load_teacher
from condistill.teachers.noise.grid import END

PROMPTS = ["a large red star at the top on snow", "a cube"]


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "without_t5"])
def family(request: pytest.FixtureRequest) -> StableDiffusion3:
    return StableDiffusion3(build_sd3(t5=request.param))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3") / "pipeline"
    build_sd3().save_pretrained(path, safe_serialization=True)
    return path


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_denoiser_gets_the_inputs_of_the_pipelines_call(family: StableDiffusion3) -> None:
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    with record_calls(family.denoiser) as calls, torch.no_grad():
        family.pipeline(PROMPTS, latents=latents(0), **settings)
        family.predict(family.denoiser, latents(0), torch.full((2,), 1000.0), family.encode(PROMPTS))
    expected, _, actual = (call.inputs for call in calls)
    assert actual.keys() == {"hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"}
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_guided_solver_steps_give_the_samples_of_the_pipelines_call(
    family: StableDiffusion3, guidance_scale: float
) -> None:
    x_t, both = latents(2), (family.encode(PROMPTS), family.encode(["", ""]))
    with torch.no_grad():
        for timestep, next_timestep in pairwise([*family.noise.solver_timesteps(2), torch.tensor(float(END))]):
            here, there = timestep.expand(2), next_timestep.expand(2)
            conditional, unconditional = (family.predict(family.denoiser, x_t, here, each) for each in both)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            x_t = family.noise.step(guided, x_t, here, there)
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    expected = family.pipeline(PROMPTS, latents=latents(2), output_type="latent", **settings).images
    torch.testing.assert_close(x_t, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(family.sample(family.denoiser, PROMPTS, latents(2), **settings), expected)


def test_the_text_length_is_the_number_of_tokens_of_a_condition(family: StableDiffusion3) -> None:
    assert family.text_length == 20 + 256 == family.encode(PROMPTS).tensors["prompt_embeds"].shape[1]


def test_latents_are_decoded_to_the_pixels_of_the_pipelines_call(family: StableDiffusion3) -> None:
    settings = {"num_inference_steps": 1, "guidance_scale": 1.0}
    expected = family.pipeline(PROMPTS, latents=latents(4), output_type="np", **settings).images
    images = family.decode(family.sample(family.denoiser, PROMPTS, latents(4), **settings))
    assert np.abs(images - 255.0 * expected).max() <= 0.5 + 1e-3  # half-way values may round either way


def test_costs_are_counted_for_the_inputs_of_a_prediction(family: StableDiffusion3) -> None:
    cost = macs(family.denoiser, text_length=family.text_length)
    assert macs(family.denoiser, size=(8, 8), text_length=276) == cost > macs(family.denoiser, text_length=20)
    example = family.example_inputs(family.denoiser, (8, 8), 276)
    with record_calls(family.denoiser) as calls, torch.no_grad():
        family.predict(family.denoiser, latents(0, 1), torch.full((1,), 1000.0), family.encode([""]))
    shapes = {name: tensor.shape for name, tensor in calls[0].inputs.items()}
    assert {name: tensor.shape for name, tensor in example.items()} == shapes


def test_another_resolution_is_sampled_up_to_the_position_embeddings(family: StableDiffusion3) -> None:
    larger = StableDiffusion3(family.pipeline, resolution=96)
    assert larger.latent_shape == (4, 12, 12)
    noise = torch.randn(1, 4, 12, 12)
    samples = larger.sample(larger.denoiser, ["a"], noise, num_inference_steps=1, guidance_scale=1.0)
    assert samples.shape == noise.shape
    with pytest.raises(CondistillError, match=r"resolution is 144; the position embeddings .* at most 128 pixels"):
        StableDiffusion3(family.pipeline, resolution=144)
    with pytest.raises(CondistillError, match="must be a multiple of 16 pixels, nearest: 96, 112"):
        StableDiffusion3(family.pipeline, resolution=100)


@pytest.mark.slow
def test_a_pipeline_without_its_third_text_encoder_is_loaded_and_saved(tmp_path: Path) -> None:
    built = StableDiffusion3(build_sd3(t5=False))
    save_pipeline(built, built.denoiser, tmp_path / "pipeline", card="")
    loaded = load_teacher(TeacherSettings(pipeline=str(tmp_path / "pipeline")))
    assert isinstance(loaded, StableDiffusion3)
    assert loaded.pipeline.text_encoder_3 is None
    settings = {"num_inference_steps": 1, "guidance_scale": 1.0}
    samples = [family.sample(family.denoiser, PROMPTS, latents(0), **settings) for family in (built, loaded)]
    assert torch.equal(*samples)
    plain = StableDiffusion3Pipeline.from_pretrained(tmp_path / "pipeline", text_encoder_3=None, tokenizer_3=None)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(plain(PROMPTS, latents=latents(0), output_type="latent", **settings).images, samples[0])


@pytest.mark.slow
def test_a_whole_run_gives_a_student_that_plain_diffusers_samples(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5})
    image = student("a small red star", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


@pytest.mark.slow
def test_a_whole_run_in_few_steps_needs_no_image(directory: Path, tmp_path: Path) -> None:
    distill = {"few_steps": {"num_inference_steps": 2}, "path": {"start": "noise", "num_inference_steps": 2}}
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5}, distill=distill, cache={"size": 0})
    assert student("a small red star", num_inference_steps=2, output_type="np").images[0].shape == (64, 64, 3)
