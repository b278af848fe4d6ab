from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from contract import check_end_to_end
from tiny import build_flux, heard_by
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.config.sections import TeacherSettings
from condistill.distill.objective import Objective
from condistill.distill.states import Sample
from condistill.distill.student import StudentForward
from condistill.errors import CondistillError
from condistill.evaluate.costs import compute_record
from condistill.profiling.macs import macs
from condistill.profiling.memory import peak_memory_gib
from condistill.students.derive import Student
from condistill.students.guidance import guidance_kind, guidance_learnt
from condistill.teachers.families.flux import Flux
from condistill.teachers.load import load_teacher

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flux") / "pipeline"
    build_flux().save_pretrained(path, safe_serialization=True)
    return path


def latents(seed: int, n: int = 2, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(n, 4, *size, generator=torch.Generator().manual_seed(seed))


def scales(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def own_call(family: Flux, noise: Tensor, **asked: Any) -> Tensor:
    """What the pipeline's own call makes of unpacked noise, packed."""
    height, width = (8 * size for size in noise.shape[2:])
    packed = family.pipeline._pack_latents(noise, *noise.shape)
    size = {"height": height, "width": width, "output_type": "latent"}
    drawn: Tensor = family.pipeline(PROMPTS, latents=packed, **size, **asked).images
    return drawn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("guidance_embeds", "size"), [(True, (8, 8)), (True, (4, 8)), (False, (8, 8))])
def test_the_denoiser_is_told_what_the_pipelines_own_call_tells_it(
    guidance_embeds: bool, size: tuple[int, int], dtype: torch.dtype
) -> None:
    family = Flux(build_flux(guidance_embeds=guidance_embeds).to(dtype), resolution=64)
    heard, handle = heard_by(family.denoiser)
    with torch.no_grad():
        own_call(family, latents(0, size=size), num_inference_steps=3, guidance_scale=2.3)
        x_t = family.pipeline._unpack_latents(heard[1]["hidden_states"], *size, vae_scale_factor=1)
        second = family.pipeline.scheduler.timesteps[1].expand(2)
        condition = family.encode(PROMPTS).with_guidance_scale(scales(2.3, 2.3))
        prediction = family.predict(family.denoiser, x_t.float(), second, condition)
    handle.remove()
    assert (prediction.shape, prediction.dtype) == ((2, 4, *size), torch.float32)
    own, given = heard[1], heard[3]
    assert own.keys() == given.keys()
    assert ("guidance" in own) == guidance_embeds
    for name, tensor in own.items():
        torch.testing.assert_close(given[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_steps_by_hand_lead_where_the_pipelines_own_call_leads(family: Flux, guidance_scale: float) -> None:
    x_t = latents(2)
    condition = family.encode(PROMPTS).with_guidance_scale(scales(guidance_scale, guidance_scale))
    timesteps = [*family.noise.solver_timesteps(2).tolist(), -1.0]
    with torch.no_grad():
        for here, follows in pairwise(timesteps):
            now = torch.full((2,), here)
            prediction = family.predict(family.denoiser, x_t, now, condition)
            x_t = family.noise.step(prediction, x_t, now, torch.full((2,), follows))
    asked = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    own = own_call(family, latents(2), **asked)
    torch.testing.assert_close(family.pack_latents(x_t), own, rtol=1e-4, atol=1e-4)
    drawn = family.sample(family.denoiser, PROMPTS, latents(2), **asked)
    assert drawn.shape == (2, 4, 8, 8)
    assert torch.equal(family.pack_latents(drawn), own)


def test_the_denoiser_hears_the_prompt_the_timestep_and_the_guidance_scale(dev: Flux) -> None:
    """Else the tests above would hold of anything."""
    with torch.no_grad():
        said, other = (dev.encode(prompts) for prompts in (PROMPTS, PROMPTS[::-1]))
        given = [
            dev.predict(dev.denoiser, latents(0), torch.full((2,), t), c.with_guidance_scale(scales(scale, scale)))
            for t, c, scale in ((900.0, said, 2.0), (900.0, other, 2.0), (100.0, said, 2.0), (900.0, said, 5.0))
        ]
    assert all((given[0] - each).abs().max() > 1e-3 for each in given[1:])


# guidance


def test_where_nobody_says_a_guidance_scale_it_is_the_pipelines_own(dev: Flux) -> None:
    heard, handle = heard_by(dev.denoiser)
    with torch.no_grad():
        peak_memory_gib(dev, dev.denoiser)
        dev.pipeline("", height=64, width=64, num_inference_steps=1, output_type="latent")
    handle.remove()
    assert torch.equal(heard[0]["guidance"], heard[1]["guidance"])


def test_a_denoiser_that_is_told_no_scale_is_asked_without_one(schnell: Flux) -> None:
    condition, timesteps = schnell.encode(PROMPTS), torch.full((2,), 500.0)
    with torch.no_grad():
        plain = schnell.predict(schnell.denoiser, latents(0), timesteps, condition)
        told = schnell.predict(schnell.denoiser, latents(0), timesteps, condition.with_guidance_scale(scales(2, 7)))
    assert torch.equal(plain, told)


def test_the_student_of_a_teacher_that_is_told_its_scale_must_be_told_as_well(dev: Flux, schnell: Flux) -> None:
    assert guidance_kind(schnell.denoiser) == "cfg"
    kind, folds = guidance_kind(dev.denoiser), DistillSettings(guidance_distillation=[1.5, 4.0])
    assert kind == guidance_learnt(kind, dev.denoiser, folds) == "embedded"
    with pytest.raises(CondistillError, match=r"set distill.guidance_distillation to a range \[low, high\]"):
        guidance_learnt(kind, dev.denoiser, DistillSettings())


def test_a_teacher_that_is_told_its_scale_is_asked_once_and_told_each_samples_own(dev: Flux) -> None:
    settings = DistillSettings(batch_size=2, guidance_distillation=[1.5, 4.0])
    objective = Objective(dev, settings, Accelerator(cpu=True), ())
    twin = Student(dev.denoiser, (), kept=(), maps=nn.ModuleList())  # type: ignore[arg-type]
    scale, kept = scales(1.7, 3.9), torch.zeros(2, dtype=torch.bool)
    timesteps = torch.tensor([300.0, 800.0])
    sample = Sample(latents(0), timesteps, PROMPTS, kept, latents(1), latents(2), guidance_scale=scale)
    heard, handle = heard_by(dev.denoiser)
    losses = objective.losses(objective.compare(StudentForward(dev, twin, features=None), sample))
    handle.remove()
    assert len(heard) == 2  # the teacher, and the student that is its twin
    assert all(torch.equal(each["guidance"], scale.float()) for each in heard)
    assert losses.terms["output"].tolist() == [0, 0]


# sizes


def test_a_pipelines_own_size_is_its_attribute(dev: Flux) -> None:
    own = Flux(dev.pipeline)
    assert own.latent_shape == (4, 128, 128)  # at 8 pixels each, 1024: what the call draws unless told otherwise
    assert dev.latent_shape == (4, 8, 8)
    assert dev.pack_latents(latents(0)).shape == (2, 16, 16)
    assert torch.equal(dev.unpack_latents(dev.pack_latents(latents(0))), latents(0))
    with pytest.raises(CondistillError, match="must be a multiple of 16 pixels, nearest: 64, 80"):
        Flux(dev.pipeline, resolution=72)


@pytest.mark.parametrize("resolution", [64, 128])
def test_the_shift_follows_the_size_of_the_image(dev: Flux, resolution: int) -> None:
    family = Flux(dev.pipeline, resolution=resolution)
    tokens = (resolution // 16) ** 2
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)  # in float64, as published
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    expected = np.exp(mu) / (np.exp(mu) + 1 / sigmas - 1)
    torch.testing.assert_close(family.noise.solver_timesteps(4).double(), 1000 * expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(family.noise.shifted(sigmas), expected)


def test_text_is_as_long_as_what_the_denoiser_attends_to(family: Flux) -> None:
    condition = family.encode(PROMPTS)
    assert family.text_length == 512 == condition.tensors["prompt_embeds"].shape[1]
    assert len(condition) == len(family.encode(["", ""])) == 2


def test_latents_are_decoded_to_the_pipelines_own_pixels(dev: Flux) -> None:
    asked = {"num_inference_steps": 1, "guidance_scale": 2.0}
    packed = dev.pack_latents(latents(4))
    own = dev.pipeline(PROMPTS, latents=packed, height=64, width=64, output_type="np", **asked).images
    images = dev.decode(dev.sample(dev.denoiser, PROMPTS, latents(4), **asked))
    assert images.shape == (2, 64, 64, 3)
    assert np.abs(images - 255.0 * own).max() <= 0.5 + 1e-3  # half-way values may round either way


def test_costs_are_counted_of_the_inputs_that_the_denoiser_takes(family: Flux) -> None:
    assert macs(family.denoiser, size=(16, 8), text_length=512) > macs(family.denoiser, size=(8, 8), text_length=512)
    shapes = family.example_inputs(family.denoiser, (8, 8), 512)
    heard, handle = heard_by(family.denoiser)
    with torch.no_grad():
        family.predict(family.denoiser, latents(0, 1), torch.full((1,), 1000.0), family.encode([""]))
    handle.remove()
    assert {name: tensor.shape for name, tensor in shapes.items()} == {n: t.shape for n, t in heard[0].items()}
    assert all(tensor.device.type == "meta" for tensor in shapes.values())


# the whole


def test_a_saved_pipeline_is_found_to_be_of_this_family(whole: Path, dev: Flux) -> None:
    loaded = load_teacher(TeacherSettings(pipeline=str(whole), resolution=64))
    assert isinstance(loaded, Flux)
    asked = {"num_inference_steps": 1, "guidance_scale": 2.0}
    assert torch.equal(*[each.sample(each.denoiser, PROMPTS, latents(0), **asked) for each in (loaded, dev)])


def test_a_cache_that_was_drawn_without_a_second_call_is_not_counted_twice(schnell: Flux) -> None:
    sections = {"teacher": {"pipeline": "t"}, "prompts": {"files": ["p"]}, "student": {"depth": 0.5}}
    cache = {"size": 10, "num_inference_steps": 4, "guidance_scale": 3.5}
    recipe = Recipe.model_validate(sections | {"cache": cache})
    name = "random_conditioning"
    cost = compute_record(recipe, name, {"teacher": schnell.denoiser}, train_sec={name: 0.0})
    assert cost.cache_forwards == 40


@pytest.mark.slow
def test_the_whole_way_ends_in_a_student_that_diffusers_draws_with(whole: Path, tmp_path: Path) -> None:
    changes = {"teacher": {"resolution": 64}, "distill": {"guidance_distillation": [1.5, 4.0]}}
    student = check_end_to_end(whole, tmp_path, {"depth": 0.5}, **changes)
    size = {"height": 64, "width": 64}
    image = student("a small red star", num_inference_steps=2, output_type="np", **size).images[0]
    assert image.shape == (64, 64, 3)
    (card,) = tmp_path.glob("run/pipelines/*/README.md")
    assert "distilled for scales from 1.5 to 4; the scale is an input" in card.read_text(encoding="utf-8").replace(
        "\\", ""
    )
