from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from end_to_end import check_end_to_end
from tiny import build_flux, record_calls
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.distill.objective import Objective
from condistill.distill.states import Sample
from condistill.distill.student import StudentForward
from condistill.errors import CondistillError
from condistill.evaluate.costs import Kind, compute_record
from condistill.profiling.macs import macs
from condistill.profiling.memory import peak_memory
from condistill.students.derive import Student
from condistill.students.guidance import guidance_kind, guidance_learnt
from condistill.teachers.families.flux import Flux
from condistill.teachers.noise.grid import END

PROMPTS = ["a large red star at the top on snow", "a cube"]


@pytest.fixture(scope="module")
def dev() -> Flux:
    return Flux(build_flux(), resolution=64)


@pytest.fixture(scope="module")
def schnell() -> Flux:
    return Flux(build_flux(guidance_embeds=False), resolution=64)


@pytest.fixture(params=["dev", "schnell"])
def family(request: pytest.FixtureRequest) -> Flux:
    return request.getfixturevalue(request.param)


def latents(seed: int, n: int = 2, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(n, 4, *size, generator=torch.Generator().manual_seed(seed))


def scales(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sample_with_pipeline(family: Flux, noise: Tensor, **settings: Any) -> Tensor:
    """Return the packed latents of the pipeline's own call, from unpacked noise."""
    height, width = (8 * size for size in noise.shape[2:])
    packed = family.pipeline._pack_latents(noise, *noise.shape)
    size = {"height": height, "width": width, "output_type": "latent"}
    samples: Tensor = family.pipeline(PROMPTS, latents=packed, **size, **settings).images
    return samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("guidance_embeds", "size"), [(True, (8, 8)), (True, (4, 8)), (False, (8, 8))])
def test_the_denoiser_gets_the_inputs_of_the_pipelines_call(
    guidance_embeds: bool, size: tuple[int, int], dtype: torch.dtype
) -> None:
    family = Flux(build_flux(guidance_embeds=guidance_embeds).to(dtype), resolution=64)
    with record_calls(family.denoiser) as calls, torch.no_grad():
        sample_with_pipeline(family, latents(0, size=size), num_inference_steps=3, guidance_scale=2.3)
        x_t = family.pipeline._unpack_latents(calls[1].inputs["hidden_states"], *size, vae_scale_factor=1)
        second = family.pipeline.scheduler.timesteps[1].expand(2)
        condition = family.encode(PROMPTS).with_guidance_scale(scales(2.3, 2.3))
        prediction = family.predict(family.denoiser, x_t.float(), second, condition)
    assert (prediction.shape, prediction.dtype) == ((2, 4, *size), torch.float32)
    expected, actual = calls[1].inputs, calls[3].inputs
    assert actual.keys() == expected.keys()
    assert ("guidance" in actual) == guidance_embeds
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_solver_steps_give_the_samples_of_the_pipelines_call(family: Flux, guidance_scale: float) -> None:
    x_t = latents(2)
    condition = family.encode(PROMPTS).with_guidance_scale(scales(guidance_scale, guidance_scale))
    with torch.no_grad():
        for timestep, next_timestep in pairwise([*family.noise.solver_timesteps(2), torch.tensor(float(END))]):
            here = timestep.expand(2)
            prediction = family.predict(family.denoiser, x_t, here, condition)
            x_t = family.noise.step(prediction, x_t, here, next_timestep.expand(2))
    settings = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    expected = sample_with_pipeline(family, latents(2), **settings)
    torch.testing.assert_close(family.pack_latents(x_t), expected, rtol=1e-4, atol=1e-4)
    samples = family.sample(family.denoiser, PROMPTS, latents(2), **settings)
    assert torch.equal(family.pack_latents(samples), expected)


# guidance


def test_the_guidance_scale_changes_the_prediction(dev: Flux) -> None:
    condition, timesteps = dev.encode(PROMPTS), torch.full((2,), 900.0)
    with torch.no_grad():
        at_2, at_5 = (
            dev.predict(dev.denoiser, latents(0), timesteps, condition.with_guidance_scale(scales(scale, scale)))
            for scale in (2.0, 5.0)
        )
    assert (at_2 - at_5).abs().max() > 1e-3


def test_without_a_guidance_scale_the_default_of_the_pipelines_call_is_used(dev: Flux) -> None:
    with record_calls(dev.denoiser) as calls, torch.no_grad():
        peak_memory(dev, dev.denoiser)
        dev.pipeline("", height=64, width=64, num_inference_steps=1, output_type="latent")
    assert torch.equal(calls[0].inputs["guidance"], calls[1].inputs["guidance"])


def test_a_denoiser_without_guidance_ignores_a_guidance_scale(schnell: Flux) -> None:
    condition, timesteps = schnell.encode(PROMPTS), torch.full((2,), 500.0)
    with torch.no_grad():
        plain, scaled = (
            schnell.predict(schnell.denoiser, latents(0), timesteps, each)
            for each in (condition, condition.with_guidance_scale(scales(2, 7)))
        )
    assert torch.equal(plain, scaled)


def test_the_student_of_a_teacher_that_takes_the_guidance_scale_must_take_it_too(dev: Flux, schnell: Flux) -> None:
    assert guidance_kind(schnell.denoiser) == "cfg"
    kind, settings = guidance_kind(dev.denoiser), DistillSettings(guidance_distillation=[1.5, 4.0])
    assert kind == guidance_learnt(kind, dev.denoiser, settings) == "embedded"
    with pytest.raises(CondistillError, match=r"set distill.guidance_distillation to a range \[low, high\]"):
        guidance_learnt(kind, dev.denoiser, DistillSettings())


def test_a_teacher_that_takes_the_guidance_scale_is_evaluated_once_with_the_scale_of_each_sample(dev: Flux) -> None:
    settings = DistillSettings(batch_size=2, guidance_distillation=[1.5, 4.0])
    objective = Objective(dev, settings, Accelerator(cpu=True), ())
    student = Student(dev.denoiser, (), kept=(), maps=nn.ModuleList())  # type: ignore[arg-type]
    scale, replaced = scales(1.7, 3.9), torch.zeros(2, dtype=torch.bool)
    timesteps = torch.tensor([300.0, 800.0])
    sample = Sample(latents(0), timesteps, PROMPTS, replaced, latents(1), latents(2), guidance_scale=scale)
    with record_calls(dev.denoiser) as calls:
        losses = objective.losses(objective.compare(StudentForward(dev.predict, student, features=None), sample))
    assert len(calls) == 2  # the teacher, and the student, which is the same denoiser
    assert all(torch.equal(call.inputs["guidance"], scale.float()) for call in calls)
    assert losses.terms["output"].tolist() == [0, 0]


# sizes


def test_the_default_size_is_an_attribute_of_the_pipeline(dev: Flux) -> None:
    assert Flux(dev.pipeline).latent_shape == (4, 128, 128)
    assert dev.latent_shape == (4, 8, 8)
    assert dev.pack_latents(latents(0)).shape == (2, 16, 16)
    assert torch.equal(dev.unpack_latents(dev.pack_latents(latents(0))), latents(0))
    with pytest.raises(CondistillError, match="must be a multiple of 16 pixels, nearest: 64, 80"):
        Flux(dev.pipeline, resolution=72)


@pytest.mark.parametrize("resolution", [64, 128])
def test_the_shift_depends_on_the_size_of_the_image(dev: Flux, resolution: int) -> None:
    family = Flux(dev.pipeline, resolution=resolution)
    tokens = (resolution // 16) ** 2
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)  # the published formula
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    expected = np.exp(mu) / (np.exp(mu) + 1 / sigmas - 1)
    torch.testing.assert_close(family.noise.solver_timesteps(4).double(), 1000 * expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(family.noise.shifted(sigmas), expected)


def test_the_text_length_is_the_number_of_tokens_of_a_condition(family: Flux) -> None:
    assert family.text_length == 512 == family.encode(PROMPTS).tensors["prompt_embeds"].shape[1]


def test_latents_are_decoded_to_the_pixels_of_the_pipelines_call(dev: Flux) -> None:
    settings = {"num_inference_steps": 1, "guidance_scale": 2.0}
    packed = dev.pack_latents(latents(4))
    expected = dev.pipeline(PROMPTS, latents=packed, height=64, width=64, output_type="np", **settings).images
    images = dev.decode(dev.sample(dev.denoiser, PROMPTS, latents(4), **settings))
    assert np.abs(images - 255.0 * expected).max() <= 0.5 + 1e-3  # half-way values may round either way


def test_costs_are_counted_for_the_inputs_of_a_prediction(family: Flux) -> None:
    assert macs(family.denoiser, size=(16, 8), text_length=512) > macs(family.denoiser, size=(8, 8), text_length=512)
    example = family.example_inputs(family.denoiser, (8, 8), 512)
    with record_calls(family.denoiser) as calls, torch.no_grad():
        family.predict(family.denoiser, latents(0, 1), torch.full((1,), 1000.0), family.encode([""]))
    shapes = {name: tensor.shape for name, tensor in calls[0].inputs.items()}
    assert {name: tensor.shape for name, tensor in example.items()} == shapes


def test_a_cache_of_a_teacher_without_guidance_takes_one_evaluation_per_step(schnell: Flux) -> None:
    sections = {"teacher": {"pipeline": "t"}, "prompts": {"files": ["p"]}, "student": {"depth": 0.5}}
    cache = {"size": 10, "num_inference_steps": 4, "guidance_scale": 3.5}
    recipe = Recipe.model_validate(sections | {"cache": cache})
    name = "random_conditioning"
    cost = compute_record(recipe, name, {"teacher": Kind.of(schnell.denoiser)}, train_sec={name: 0.0})
    assert cost.cache_forwards == 40


@pytest.mark.slow
def test_a_whole_run_gives_a_student_that_plain_diffusers_samples(tmp_path: Path) -> None:
    build_flux().save_pretrained(tmp_path / "teacher", safe_serialization=True)
    changes = {"teacher": {"resolution": 64}, "distill": {"guidance_distillation": [1.5, 4.0]}}
    student = check_end_to_end(tmp_path / "teacher", tmp_path, {"depth": 0.5}, **changes)
    size = {"height": 64, "width": 64}
    image = student("a small red star", num_inference_steps=2, output_type="np", **size).images[0]
    assert image.shape == (64, 64, 3)
    (card,) = tmp_path.glob("run/pipelines/*/README.md")
    text = card.read_text(encoding="utf-8").replace("\\", "")
    assert "distilled for scales from 1.5 to 4; the scale is an input" in text
