from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline
from end_to_end import check_end_to_end
from tiny import build_pixart, record_calls
from torch import Tensor

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.profiling.macs import macs
from condistill.teachers.families.pixart import PixArt
from condistill.teachers.load import load_teacher

PROMPTS = list(tiny.PROMPTS)


def save(pipeline: Any, path: Path) -> Path:
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module", params=["alpha", "sigma"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = PixArtAlphaPipeline if request.param == "alpha" else PixArtSigmaPipeline
    return save(build_pixart(kind), tmp_path_factory.mktemp("pixart") / "pipeline")


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
    """A teacher whose transformer takes the size of the image."""
    return PixArt(build_pixart(sample_size=128), resolution=16)


def test_a_tokenizer_that_needs_a_missing_package_names_the_package(tmp_path: Path) -> None:
    path = save(build_pixart(), tmp_path / "pipeline")
    (path / "tokenizer" / "tokenizer.json").unlink()
    (path / "tokenizer" / "spiece.model").write_bytes(b"the only tokenizer file of the published pipelines")
    with pytest.raises(CondistillError, match=r"cannot be loaded: .* pip install sentencepiece protobuf$"):
        load_teacher(TeacherSettings(pipeline=str(path)))


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def sample_with_pipeline(pipeline: Any, noise: Tensor, steps: int, guidance_scale: float) -> Tensor:
    """Return the latents of the pipeline's own call."""
    samples: Tensor = pipeline(
        prompt=PROMPTS,
        latents=noise,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
        use_resolution_binning=False,
        clean_caption=False,
    ).images
    return samples


def sample_with_predictions(family: PixArt, noise: Tensor, steps: int, guidance_scale: float) -> Tensor:
    """Return the latents of a sampling loop over guided predictions, with the pipeline's kind of scheduler."""
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    x_t, both = noise, (family.encode(PROMPTS), family.encode(["", ""]))
    with torch.no_grad():
        for t in scheduler.timesteps:
            conditional, unconditional = (family.predict(family.denoiser, x_t, t.expand(2), c) for c in both)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            x_t = scheduler.step(guided, t, x_t).prev_sample
    return x_t


def test_guided_predictions_give_the_samples_of_the_pipelines_call(family: PixArt, oracle: Any) -> None:
    expected = sample_with_pipeline(oracle, latents(0), 2, 4.0)
    samples = sample_with_predictions(family, latents(0), 2, 4.0)
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)
    samples = family.sample(family.denoiser, PROMPTS, latents(0), num_inference_steps=2, guidance_scale=4.0)
    assert torch.equal(samples, expected)


def test_a_size_condition_is_that_of_the_pipelines_call(sized: PixArt) -> None:
    expected = sample_with_pipeline(sized.pipeline, latents(0), 2, 4.0)
    samples = sample_with_predictions(sized, latents(0), 2, 4.0)
    torch.testing.assert_close(samples, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("takes_size", [False, True])
def test_the_denoiser_gets_the_inputs_of_the_pipelines_call(takes_size: bool, family: PixArt, sized: PixArt) -> None:
    family = sized if takes_size else family
    with record_calls(family.denoiser) as calls, torch.no_grad():
        sample_with_pipeline(family.pipeline, latents(0), 2, 1.0)
        family.predict(family.denoiser, latents(0), calls[0].inputs["timestep"], family.encode(PROMPTS))
    expected, inputs = calls[0].inputs, calls[2].inputs
    assert inputs.keys() == expected.keys()
    assert ("resolution" in inputs) == ("aspect_ratio" in inputs) == takes_size
    for name in inputs.keys() - {"hidden_states"}:
        assert torch.equal(inputs[name], expected[name]), name


def test_the_prediction_is_the_output_without_its_variance(family: PixArt) -> None:
    condition, timesteps = family.encode(PROMPTS), torch.tensor([3, 977])
    with torch.no_grad():
        prediction = family.predict(family.denoiser, latents(0), timesteps, condition)
        other = copy.deepcopy(family.denoiser)
        other.proj_out.weight.view(2, 2, 8, -1)[:, :, 4:].zero_()
        other.proj_out.bias.view(2, 2, 8)[:, :, 4:].zero_()
        assert torch.equal(family.predict(other, latents(0), timesteps, condition), prediction)


def test_noise_is_added_by_the_betas_of_the_pipelines_scheduler(family: PixArt) -> None:
    scheduler, timesteps = family.pipeline.scheduler, torch.tensor([0, 500, 999])
    expected = DDPMScheduler(beta_start=0.0001, beta_end=0.02).add_noise(latents(0, 3), latents(1, 3), timesteps)
    torch.testing.assert_close(family.noise.add_noise(latents(0, 3), latents(1, 3), timesteps), expected)
    for solver in (family.noise.solver, family.noise.consistency_solver(50)):
        assert torch.equal(solver.alphas_cumprod, scheduler.alphas_cumprod)
    assert torch.equal(family.noise.alpha_bar(timesteps), scheduler.alphas_cumprod[timesteps])


def test_the_empty_prompt_is_the_unconditional_input_of_the_pipelines_call(family: PixArt, oracle: Any) -> None:
    with torch.no_grad():
        *_, embeds, mask = oracle.encode_prompt(PROMPTS, True, clean_caption=False)
    tensors = family.encode(["", ""]).tensors
    assert torch.equal(tensors["prompt_embeds"], embeds)
    assert torch.equal(tensors["prompt_attention_mask"], mask)


def test_prompts_are_padded_to_the_length_of_the_pipelines_call(family: PixArt) -> None:
    length = 120 if isinstance(family.pipeline, PixArtAlphaPipeline) else 300
    assert family.text_length == length
    assert family.encode([""]).tensors["prompt_embeds"].shape == (1, length, 12)


def test_padding_is_left_out_of_an_embedding(family: PixArt) -> None:
    condition = family.encode(["two green rings", ""])
    embeds, mask = condition.tensors["prompt_embeds"].double(), condition.tensors["prompt_attention_mask"].bool()
    assert mask.sum(1).tolist() == [4, 1]
    difference = embeds[0, :4].mean(0) - embeds[1, 0]
    embedding = family.text_embedding(["two green rings"])[0]
    torch.testing.assert_close(embedding.double(), difference / difference.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"sample_size": 128}, {"use_additional_conditions": True}])
def test_macs_are_counted_from_the_config_alone(config: dict[str, Any]) -> None:
    transformer = build_pixart(**config).transformer
    assert macs(transformer, size=8, text_length=120) > macs(transformer, size=8, text_length=60) > 0


def test_a_size_condition_that_the_pipeline_does_not_give_is_refused() -> None:
    with pytest.raises(
        CondistillError, match=r"a PixArtSigmaPipeline with sample_size 8 does not give it; set use_add"
    ):
        PixArt(build_pixart(PixArtSigmaPipeline, use_additional_conditions=True))


def test_another_resolution_is_sampled_and_decoded(family: PixArt) -> None:
    larger = PixArt(family.pipeline, resolution=24)
    assert larger.latent_shape == (4, 12, 12)
    noise = torch.zeros(2, 4, 12, 12)
    samples = larger.sample(larger.denoiser, PROMPTS, noise, num_inference_steps=2, guidance_scale=2.0)
    assert larger.decode(samples).shape == (2, 24, 24, 3)
    with pytest.raises(CondistillError, match="a multiple of 4 pixels, nearest: 16, 20"):
        PixArt(family.pipeline, resolution=18)


@pytest.mark.slow
def test_a_whole_run_gives_a_student_that_plain_diffusers_samples(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"depth": 0.5})
    assert len(student.transformer.transformer_blocks) == 2
    settings = {"num_inference_steps": 2, "use_resolution_binning": False, "clean_caption": False}
    assert student("a small red star", output_type="np", **settings).images[0].shape == (16, 16, 3)
