from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import check_end_to_end
from diffusers import StableDiffusion3Pipeline
from tiny import build_sd3, heard_by
from torch import Tensor

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.save import save_pipeline
from condistill.profiling.macs import macs
from condistill.teachers.families.stable_diffusion_3 import StableDiffusion3
from condistill.teachers.load import load_teacher

PROMPTS = ["a large red star at the top on snow", "a cube"]


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "without_t5"])
def family(request: pytest.FixtureRequest) -> StableDiffusion3:
    return StableDiffusion3(build_sd3(t5=request.param))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3") / "pipeline"
    build_sd3().save_pretrained(path, safe_serialization=True)
    return path


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_denoiser_is_told_what_the_pipelines_own_call_tells_it(family: StableDiffusion3) -> None:
    heard, handle = heard_by(family.denoiser)
    with torch.no_grad():
        family.pipeline(PROMPTS, latents=latents(0), num_inference_steps=2, guidance_scale=1.0, output_type="latent")
        family.predict(family.denoiser, latents(0), torch.full((2,), 1000.0), family.encode(PROMPTS))
    handle.remove()
    own, _, given = heard
    assert own.keys() == given.keys() == {"hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"}
    for name, tensor in own.items():
        torch.testing.assert_close(given[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_steps_by_hand_lead_where_the_pipelines_own_call_leads(family: StableDiffusion3, guidance_scale: float) -> None:
    x_t, prompted, null = latents(2), family.encode(PROMPTS), family.encode(["", ""])
    timesteps = [*family.noise.solver_timesteps(2).tolist(), -1.0]
    with torch.no_grad():
        for here, follows in pairwise(timesteps):
            now = torch.full((2,), here)
            said, unsaid = (family.predict(family.denoiser, x_t, now, c) for c in (prompted, null))
            x_t = family.noise.step(unsaid + guidance_scale * (said - unsaid), x_t, now, torch.full((2,), follows))
    asked = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    own = family.pipeline(PROMPTS, latents=latents(2), output_type="latent", **asked).images
    torch.testing.assert_close(x_t, own, rtol=1e-4, atol=1e-4)
    assert torch.equal(family.sample(family.denoiser, PROMPTS, latents(2), **asked), own)


def test_the_denoiser_hears_the_prompt_and_the_timestep(family: StableDiffusion3) -> None:
    """Else the tests above would hold of anything."""
    with torch.no_grad():
        said, other = family.encode(PROMPTS), family.encode(PROMPTS[::-1])
        given = [
            family.predict(family.denoiser, latents(0), torch.full((2,), t), c)
            for t, c in ((900.0, said), (900.0, other), (100.0, said))
        ]
    assert all((given[0] - each).abs().max() > 1e-3 for each in given[1:])


def test_text_is_as_long_as_what_the_denoiser_attends_to(family: StableDiffusion3) -> None:
    condition = family.encode(PROMPTS)
    assert family.text_length == 20 + 256 == condition.tensors["prompt_embeds"].shape[1]
    assert len(condition) == 2


def test_prompts_are_told_apart_by_their_embeddings(family: StableDiffusion3) -> None:
    embedding = family.text_embedding([*PROMPTS, ""])
    torch.testing.assert_close(embedding.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    assert embedding[0] @ embedding[1] < 0.99


def test_latents_are_decoded_to_the_pipelines_own_pixels(family: StableDiffusion3) -> None:
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0}
    own = family.pipeline(PROMPTS, latents=latents(4), output_type="np", **asked).images
    images = family.decode(family.sample(family.denoiser, PROMPTS, latents(4), **asked))
    assert images.shape == (2, 64, 64, 3)
    assert np.abs(images - 255.0 * own).max() <= 0.5 + 1e-3  # half-way values may round either way


def test_costs_are_counted_of_the_inputs_that_the_denoiser_takes(family: StableDiffusion3) -> None:
    own = macs(family.denoiser, text_length=family.text_length)
    assert macs(family.denoiser, size=(8, 8), text_length=276) == own > macs(family.denoiser, text_length=20)
    shapes = family.example_inputs(family.denoiser, (8, 8), 276)
    heard, handle = heard_by(family.denoiser)
    with torch.no_grad():
        family.predict(family.denoiser, latents(0, 1), torch.full((1,), 1000.0), family.encode([""]))
    handle.remove()
    assert {name: tensor.shape for name, tensor in shapes.items()} == {n: t.shape for n, t in heard[0].items()}
    assert all(tensor.device.type == "meta" for tensor in shapes.values())


def test_another_resolution_is_drawn_and_one_beyond_the_positions_is_refused(family: StableDiffusion3) -> None:
    pipeline = family.pipeline
    larger = StableDiffusion3(pipeline, resolution=96)
    assert (larger.latent_shape, family.latent_shape) == ((4, 12, 12), (4, 8, 8))
    noise = torch.randn(1, 4, 12, 12)
    assert larger.sample(larger.denoiser, ["a"], noise, num_inference_steps=1, guidance_scale=1.0).shape == noise.shape
    with pytest.raises(CondistillError, match=r"resolution is 144; the position embeddings .* at most 128 pixels"):
        StableDiffusion3(pipeline, resolution=144)
    with pytest.raises(CondistillError, match="must be a multiple of 16 pixels, nearest: 96, 112"):
        StableDiffusion3(pipeline, resolution=100)


@pytest.mark.slow
def test_a_pipeline_without_its_third_text_encoder_is_loaded_and_saved(tmp_path: Path) -> None:
    own = StableDiffusion3(build_sd3(t5=False))
    save_pipeline(own, own.denoiser, tmp_path / "pipeline", card="")
    loaded = load_teacher(TeacherSettings(pipeline=str(tmp_path / "pipeline")))
    assert isinstance(loaded, StableDiffusion3)
    assert loaded.pipeline.text_encoder_3 is None
    asked = {"num_inference_steps": 1, "guidance_scale": 1.0}
    images = [each.sample(each.denoiser, PROMPTS, latents(0), **asked) for each in (own, loaded)]
    assert torch.equal(*images)
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path / "pipeline", text_encoder_3=None, tokenizer_3=None)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again(PROMPTS, latents=latents(0), output_type="latent", **asked).images, images[0])


@pytest.mark.slow
def test_the_whole_way_ends_in_a_student_that_diffusers_draws_with(whole: Path, tmp_path: Path) -> None:
    student = check_end_to_end(whole, tmp_path, {"depth": 0.5})
    image = student("a small red star", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


@pytest.mark.slow
def test_the_whole_way_in_few_steps_without_an_image(whole: Path, tmp_path: Path) -> None:
    distill = {"few_steps": {"num_inference_steps": 2}, "path": {"start": "noise", "num_inference_steps": 2}}
    student = check_end_to_end(whole, tmp_path, {"depth": 0.5}, distill=distill, cache={"size": 0})
    assert student("a small red star", num_inference_steps=2, output_type="np").images[0].shape == (64, 64, 3)
