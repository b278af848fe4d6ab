from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from end_to_end import check_end_to_end
from tiny import XL_UNET, build_sdxl, record_calls
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.save import save_pipeline
from condistill.profiling.macs import macs
from condistill.students.width import narrow, stage_widths
from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion_xl import StableDiffusionXL
from condistill.teachers.load import load_teacher
from condistill.teachers.noise.grid import END
from condistill.utils.meta import parameters

PROMPTS = ["a large red star at the top on snow", "a small blue box"]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
FULL_SIZE_UNET: dict[str, Any] = XL_UNET | {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "norm_num_groups": 32,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SCHEDULERS = {
    "base": EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
    "turbo": EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "lightning": EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_xl") / "pipeline"
    build_sdxl().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def oracle(directory: Path) -> StableDiffusionXLPipeline:
    """The pipeline, loaded by diffusers alone."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(directory: Path) -> StableDiffusionXL:
    """Shared: do not change it."""
    loaded = load_teacher(TeacherSettings(pipeline=str(directory)))
    assert isinstance(loaded, StableDiffusionXL)
    return loaded


def with_components(oracle: StableDiffusionXLPipeline, **components: Any) -> StableDiffusionXL:
    return StableDiffusionXL(StableDiffusionXLPipeline(**{**oracle.components, **components}))


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_predictions_are_those_of_the_pipelines_guided_call(oracle: StableDiffusionXLPipeline, scheduler: str) -> None:
    family = with_components(oracle, scheduler=copy.deepcopy(SCHEDULERS[scheduler]))
    with record_calls(family.denoiser) as calls:
        family.pipeline(PROMPTS, num_inference_steps=2, guidance_scale=4.0, latents=latents(1), output_type="latent")
    assert len(calls) == 2
    condition = Condition.cat([family.encode(["", ""]), family.encode(PROMPTS)])
    for call in calls:
        assert torch.equal(condition.tensors["prompt_embeds"], call.inputs["encoder_hidden_states"])
        for name in ("text_embeds", "time_ids"):
            assert torch.equal(condition.tensors[name], call.inputs[name])
        x_t, timesteps = call.inputs["sample"], call.inputs["timestep"].expand(4)
        with torch.no_grad():
            assert torch.equal(family.predict(family.denoiser, x_t, timesteps, condition), call.output)


def test_the_pooled_text_and_the_sizes_change_the_prediction(family: StableDiffusionXL) -> None:
    condition, timesteps = family.encode(PROMPTS), torch.tensor([500, 500])
    for name in ("text_embeds", "time_ids"):
        changed = Condition({**condition.tensors, name: condition.tensors[name].flip(0) + 1})
        with torch.no_grad():
            one, other = (family.predict(family.denoiser, latents(0), timesteps, c) for c in (condition, changed))
        assert (one - other).abs().max() > 1e-4, name


def test_samples_are_guided_away_from_the_unconditional_prediction(family: StableDiffusionXL) -> None:
    """An independent sampling loop: Euler over epsilon_0 + w (epsilon_c - epsilon_0)."""
    scheduler = copy.deepcopy(family.pipeline.scheduler)
    scheduler.set_timesteps(3)
    x_t = latents(2) * scheduler.init_noise_sigma
    condition = family.encode(PROMPTS)
    both = (condition, family.unconditional(condition))
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_t, timestep)
            conditional, unconditional = (
                family.predict(family.denoiser, scaled, timestep.expand(2), each) for each in both
            )
            guided = unconditional + 4.0 * (conditional - unconditional)
            x_t = scheduler.step(guided, timestep, x_t).prev_sample
    samples = family.sample(family.denoiser, PROMPTS, latents(2), num_inference_steps=3, guidance_scale=4.0)
    torch.testing.assert_close(samples, x_t, rtol=1e-4, atol=1e-4)


def test_noise_is_added_in_the_proportions_of_the_pipelines_sampler(family: StableDiffusionXL) -> None:
    sampler = copy.deepcopy(family.pipeline.scheduler)
    sampler.set_timesteps(1000)
    timesteps = torch.tensor([20, 800])
    alpha_bar = family.noise.alpha_bar(timesteps)
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt().view(-1, 1, 1, 1)
    expected = sampler.add_noise(latents(0), latents(1), timesteps.float()) / (1 + sigma**2).sqrt()
    x_t = family.noise.add_noise(latents(0), latents(1), timesteps)
    torch.testing.assert_close(x_t, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_solver_takes_the_steps_of_the_pipelines_sampler_down_to_no_noise(
    oracle: StableDiffusionXLPipeline, prediction_type: str
) -> None:
    # as published, with a setting of other samplers that Euler's ignores
    config = {**BETAS, "set_alpha_to_one": False, "prediction_type": prediction_type}
    sampler = EulerDiscreteScheduler.from_config({**config, "timestep_spacing": "trailing"})
    family = with_components(oracle, scheduler=copy.deepcopy(sampler))
    assert family.noise.prediction_type == prediction_type
    sampler.set_timesteps(4)
    timesteps = family.noise.solver_timesteps(4)
    assert timesteps.tolist() == sampler.timesteps.tolist()
    x_t, unscaled = latents(2), latents(2) * (sampler.sigmas[0] ** 2 + 1).sqrt()
    for i, timestep in enumerate(timesteps):
        prediction = latents(3 + i)
        next_timestep = timesteps[i + 1] if i < 3 else torch.tensor(END)
        x_t = family.noise.step(prediction, x_t, timestep.expand(2), next_timestep.expand(2))
        unscaled = sampler.step(prediction, sampler.timesteps[i], unscaled).prev_sample
        torch.testing.assert_close(x_t, unscaled / (sampler.sigmas[i + 1] ** 2 + 1).sqrt(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_is_the_unconditional_input_of_the_pipelines_call(
    oracle: StableDiffusionXLPipeline, zeros: bool
) -> None:
    family = with_components(oracle)
    family.pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    with torch.no_grad():
        embeds, negative, pooled, negative_pooled = family.pipeline.encode_prompt([PROMPTS[0]])
    assert negative.any() != zeros
    for condition in (family.encode(["", PROMPTS[0]]), family.encode([""])):
        torch.testing.assert_close(condition.tensors["prompt_embeds"][:1], negative)
        torch.testing.assert_close(condition.tensors["text_embeds"][:1], negative_pooled)
    tensors = family.encode(["", PROMPTS[0]]).tensors
    torch.testing.assert_close(tensors["prompt_embeds"][1:], embeds)
    torch.testing.assert_close(tensors["text_embeds"][1:], pooled)


def test_an_embedding_is_the_pooled_text_less_that_of_the_empty_prompt(family: StableDiffusionXL) -> None:
    with torch.no_grad():
        _, _, pooled, _ = family.pipeline.encode_prompt([PROMPTS[0], ""], do_classifier_free_guidance=False)
    difference = pooled[0] - pooled[1]
    assert pooled[1].any()
    embedding = family.text_embedding([PROMPTS[0]])[0]
    torch.testing.assert_close(embedding, difference / difference.norm(), rtol=1e-4, atol=1e-5)


def test_the_size_condition_is_the_size_of_the_image(directory: Path, oracle: StableDiffusionXLPipeline) -> None:
    family = load_teacher(TeacherSettings(pipeline=str(directory), resolution=96))
    size = {"height": 96, "width": 96}
    with record_calls(oracle.unet) as calls:
        samples = oracle(PROMPTS[:1], **size, num_inference_steps=1, guidance_scale=1.0, output_type="latent").images
    assert tuple(samples.shape[1:]) == family.latent_shape == (4, 12, 12)
    time_ids = family.encode(PROMPTS[:1]).tensors["time_ids"]
    assert time_ids.tolist() == [[96, 96, 0, 0, 96, 96]]
    assert torch.equal(time_ids, calls[0].inputs["time_ids"])


@pytest.mark.parametrize("scale", [1.5, 7.5])
def test_the_guidance_scale_is_embedded_as_in_the_pipelines_call(family: StableDiffusionXL, scale: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        embedded = UNet2DConditionModel(**XL_UNET, time_cond_proj_dim=256).eval()
    condition = family.encode(PROMPTS).with_guidance_scale(torch.full((2,), scale, dtype=torch.float64))
    with record_calls(embedded) as calls, torch.no_grad():
        family.sample(embedded, PROMPTS, latents(0), num_inference_steps=1, guidance_scale=scale)
        x_t, timestep = calls[0].inputs["sample"], calls[0].inputs["timestep"]
        prediction = family.predict(embedded, x_t, timestep.expand(2), condition)
    assert torch.equal(calls[0].inputs["timestep_cond"], calls[1].inputs["timestep_cond"])
    assert torch.equal(prediction, calls[0].output)


def test_latents_are_decoded_in_float32_where_float16_would_overflow(oracle: StableDiffusionXLPipeline) -> None:
    half = copy.deepcopy(oracle.vae).half()
    family = with_components(oracle, vae=half)
    rounded = with_components(oracle, vae=copy.deepcopy(half).float())
    assert half.config.force_upcast
    assert (family.decode(latents(4)) == rounded.decode(latents(4))).all()
    assert half.dtype == torch.float16


def test_a_saved_student_loads_with_plain_diffusers_bit_for_bit(family: StableDiffusionXL, tmp_path: Path) -> None:
    student = narrow(family.denoiser, stage_widths(family.denoiser.config, 0.5))
    save_pipeline(family, student, tmp_path / "student", card="# A card\n")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", use_safetensors=True)
    assert type(pipeline) is StableDiffusionXLPipeline
    loaded = pipeline.unet.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in student.state_dict().items())
    assert not [*tmp_path.rglob("*.bin")]


def test_a_refiner_is_refused(oracle: StableDiffusionXLPipeline) -> None:
    refiner = UNet2DConditionModel(**(XL_UNET | {"projection_class_embeddings_input_dim": 20 + 5 * 8}))
    with pytest.raises(CondistillError, match=r"input_dim 60; .* and 68, for pooled text and 6 sizes; give a base"):
        with_components(oracle, unet=refiner)


# costs


@pytest.mark.slow
def test_stable_diffusion_xl_has_the_published_size() -> None:
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(**FULL_SIZE_UNET)
    assert parameters(denoiser) == 2_567_463_684


@pytest.mark.slow
def test_counting_on_the_meta_device_agrees_with_counting_a_real_run(family: StableDiffusionXL) -> None:
    x_t, condition = latents(0, 1), family.encode(PROMPTS[:1])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.predict(family.denoiser, x_t, torch.tensor([1]), condition)
    assert macs(family.denoiser, text_length=family.text_length) == counter.get_total_flops() // 2


@pytest.mark.slow
def test_the_cost_of_stable_diffusion_xl_is_counted_without_memory() -> None:
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(**FULL_SIZE_UNET)
    # 2.99 T of convolutions and linear layers; inside attention, per transformer block, 2 L (L + 77) C
    attention = sum(
        count * 2 * length * (length + 77) * width for length, width, count in [(64**2, 640, 10), (32**2, 1280, 60)]
    )
    assert macs(denoiser) == pytest.approx(2.99e12 + attention, rel=2e-3)


@pytest.mark.slow
def test_a_whole_run_gives_a_student_that_plain_diffusers_samples(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"width": 0.5})
    assert type(student) is StableDiffusionXLPipeline
    assert student.unet.add_embedding.linear_2.out_features == 32
    image = student("a small red star", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


@pytest.mark.slow
def test_a_student_learns_to_take_the_guidance_scale_and_few_steps(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(
        directory,
        tmp_path,
        {"width": 0.5},
        distill={"guidance_distillation": [1.5, 5.0], "few_steps": {"num_inference_steps": 2}},
    )
    assert student.unet.config.time_cond_proj_dim == 256
    assert type(student.scheduler) is DDIMScheduler
    image = student("a small red star", num_inference_steps=2, guidance_scale=3.0, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
