from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import check_end_to_end
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.miniature import build
from condistill.pipelines.save import save_pipeline
from condistill.profiling.macs import macs
from condistill.students.width import narrow, stage_widths
from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion_xl import StableDiffusionXL
from condistill.teachers.load import load_teacher
from condistill.utils.meta import parameters

PROMPTS = ["a large red star at the top on snow", "a small blue box"]
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY = SDXL | {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 40,
    "norm_num_groups": 4,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}


def build_pipeline() -> StableDiffusionXLPipeline:
    """Random weights, 64x64 images and latents `[4, 8, 8]`."""
    tokenizer = build.build_tokenizer()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": build.MAX_TOKENS,
        "projection_dim": 20,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StableDiffusionXLPipeline(
            vae=build.build_autoencoder(),
            text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=16, **text)),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, **text)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=UNet2DConditionModel(**TINY),
            scheduler=EulerDiscreteScheduler(**NOISE_SCHEDULE, timestep_spacing="leading"),
        )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_xl") / "pipeline"
    build_pipeline().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="module")
def oracle(directory: Path) -> StableDiffusionXLPipeline:
    """The pipeline, loaded by diffusers alone."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(directory, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(directory: Path) -> StableDiffusionXL:
    """Leave it as it is."""
    loaded = load_teacher(TeacherSettings(pipeline=str(directory)))
    assert isinstance(loaded, StableDiffusionXL)
    return loaded


def with_parts(oracle: StableDiffusionXLPipeline, **parts: Any) -> StableDiffusionXL:
    return StableDiffusionXL(StableDiffusionXLPipeline(**{**oracle.components, **parts}))


def latents(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def overhear(denoiser: Any) -> tuple[list[tuple[Any, ...]], Any]:
    """What a denoiser is given and says, call by call."""
    heard: list[tuple[Any, ...]] = []
    handle = denoiser.register_forward_hook(
        lambda _module, args, kwargs, output: heard.append((args, kwargs, output[0])), with_kwargs=True
    )
    return heard, handle


SCHEDULERS = {
    "base": EulerDiscreteScheduler(**NOISE_SCHEDULE, timestep_spacing="leading"),
    "turbo": EulerAncestralDiscreteScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing"),
    "lightning": EulerDiscreteScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing"),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_predictions_are_those_of_the_pipelines_own_guided_call(
    oracle: StableDiffusionXLPipeline, scheduler: str
) -> None:
    family = with_parts(oracle, scheduler=copy.deepcopy(SCHEDULERS[scheduler]))
    heard, handle = overhear(family.denoiser)
    family.pipeline(PROMPTS, num_inference_steps=2, guidance_scale=4.0, latents=latents(1), output_type="latent")
    handle.remove()
    assert len(heard) == 2
    condition = Condition.cat([family.encode(["", ""]), family.encode(PROMPTS)])
    for (x_t, timestep), kwargs, said in heard:
        assert torch.equal(condition.tensors["prompt_embeds"], kwargs["encoder_hidden_states"])
        for name in ("text_embeds", "time_ids"):
            assert torch.equal(condition.tensors[name], kwargs["added_cond_kwargs"][name])
        with torch.no_grad():
            given = family.predict(family.denoiser, x_t, timestep.expand(4), condition)
        torch.testing.assert_close(given, said, rtol=0, atol=0)


def test_what_is_told_beside_the_text_changes_the_prediction(family: StableDiffusionXL) -> None:
    condition, timesteps = family.encode(PROMPTS), torch.tensor([500, 500])
    for name in ("text_embeds", "time_ids"):
        other = Condition({**condition.tensors, name: condition.tensors[name].flip(0) + 1})
        with torch.no_grad():
            one, two = (family.predict(family.denoiser, latents(0), timesteps, c) for c in (condition, other))
        assert (one - two).abs().max() > 1e-4, name


def test_samples_are_guided_away_from_the_unconditional_prediction(family: StableDiffusionXL) -> None:
    """A sampling loop written anew: Euler over epsilon_0 + w (epsilon_c - epsilon_0)."""
    scheduler = copy.deepcopy(family.pipeline.scheduler)
    scheduler.set_timesteps(3)
    x_t = latents(2) * scheduler.init_noise_sigma
    condition, null = family.encode(PROMPTS), family.encode(["", ""])
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            seen = scheduler.scale_model_input(x_t, timestep)
            both = [family.predict(family.denoiser, seen, timestep.expand(2), c) for c in (condition, null)]
            x_t = scheduler.step(both[1] + 4.0 * (both[0] - both[1]), timestep, x_t).prev_sample
    given = family.sample(family.denoiser, PROMPTS, latents(2), num_inference_steps=3, guidance_scale=4.0)
    torch.testing.assert_close(given, x_t, rtol=1e-4, atol=1e-4)


def test_noise_is_added_in_the_proportions_of_the_pipelines_own_sampler(family: StableDiffusionXL) -> None:
    sampler = copy.deepcopy(family.pipeline.scheduler)
    sampler.set_timesteps(1000)
    timesteps = torch.tensor([20, 800])
    sigma = ((1 - family.noise.alpha_bar(timesteps)) / family.noise.alpha_bar(timesteps)).sqrt().view(-1, 1, 1, 1)
    expected = sampler.add_noise(latents(0), latents(1), timesteps.float()) / (1 + sigma**2).sqrt()
    torch.testing.assert_close(
        family.noise.add_noise(latents(0), latents(1), timesteps), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_solver_takes_the_steps_of_the_pipelines_own_sampler_down_to_no_noise(
    oracle: StableDiffusionXLPipeline, prediction_type: str
) -> None:
    # as published, with a setting of other samplers that Euler's does not follow
    config = {**NOISE_SCHEDULE, "set_alpha_to_one": False, "prediction_type": prediction_type}
    sampler = EulerDiscreteScheduler.from_config({**config, "timestep_spacing": "trailing"})
    family = with_parts(oracle, scheduler=copy.deepcopy(sampler))
    assert family.noise.prediction_type == prediction_type
    sampler.set_timesteps(4)
    timesteps = family.noise.solver_timesteps(4)
    assert timesteps.tolist() == sampler.timesteps.tolist()
    x_t, noisy = latents(2), latents(2) * (sampler.sigmas[0] ** 2 + 1).sqrt()
    for i, now in enumerate(timesteps):
        prediction = latents(3 + i)
        follows = timesteps[i + 1] if i < 3 else torch.tensor(-1)
        x_t = family.noise.step(prediction, x_t, now.expand(2), follows.expand(2))
        noisy = sampler.step(prediction, sampler.timesteps[i], noisy).prev_sample
        torch.testing.assert_close(x_t, noisy / (sampler.sigmas[i + 1] ** 2 + 1).sqrt(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_is_what_the_pipeline_guides_against(oracle: StableDiffusionXLPipeline, zeros: bool) -> None:
    family = with_parts(oracle)
    family.pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    with torch.no_grad():
        embeds, negative, pooled, negative_pooled = family.pipeline.encode_prompt([PROMPTS[0]])
    expected = {"prompt_embeds": negative, "text_embeds": negative_pooled}
    assert negative.any() != zeros
    for condition in (family.encode(["", PROMPTS[0]]), family.encode([""])):
        for name, tensor in expected.items():
            torch.testing.assert_close(condition.tensors[name][:1], tensor)
    told = family.encode(["", PROMPTS[0]]).tensors
    torch.testing.assert_close(told["prompt_embeds"][1:], embeds)
    torch.testing.assert_close(told["text_embeds"][1:], pooled)


def test_an_embedding_is_the_pooled_text_less_the_empty_texts_of_unit_length(family: StableDiffusionXL) -> None:
    with torch.no_grad():
        _, _, pooled, _ = family.pipeline.encode_prompt([PROMPTS[0], ""], do_classifier_free_guidance=False)
    said = pooled[0] - pooled[1]
    assert pooled[1].any()
    given = family.text_embedding(["", PROMPTS[0]])
    assert not given[0].any()
    torch.testing.assert_close(given[1], said / said.norm(), rtol=1e-4, atol=1e-5)


def test_the_denoiser_is_told_the_size_that_is_drawn(directory: Path, oracle: StableDiffusionXLPipeline) -> None:
    family = load_teacher(TeacherSettings(pipeline=str(directory), resolution=96))
    heard, handle = overhear(oracle.unet)
    drawn = oracle(PROMPTS[:1], height=96, width=96, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    handle.remove()
    assert tuple(drawn.images.shape[1:]) == family.latent_shape == (4, 12, 12)
    told = family.encode(PROMPTS[:1]).tensors["time_ids"]
    assert told.tolist() == [[96, 96, 0, 0, 96, 96]]
    assert torch.equal(told, heard[0][1]["added_cond_kwargs"]["time_ids"])


@pytest.mark.parametrize("scale", [1.5, 7.5])
def test_a_guidance_scale_is_told_as_the_pipelines_own_call_tells_it(family: StableDiffusionXL, scale: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        told = UNet2DConditionModel(**TINY, time_cond_proj_dim=256).eval()
    heard, handle = overhear(told)
    family.sample(told, PROMPTS, latents(0), num_inference_steps=1, guidance_scale=scale)
    (x_t, timestep), _, said = heard[0]
    condition = family.encode(PROMPTS).with_guidance_scale(torch.full((2,), scale, dtype=torch.float64))
    with torch.no_grad():
        given = family.predict(told, x_t, timestep.expand(2), condition)
    handle.remove()
    assert torch.equal(heard[0][1]["timestep_cond"], heard[1][1]["timestep_cond"])
    assert torch.equal(given, said)


def test_latents_are_decoded_in_float32_where_float16_would_overflow(oracle: StableDiffusionXLPipeline) -> None:
    half = copy.deepcopy(oracle.vae).half()
    family = with_parts(oracle, vae=half)
    rounded = with_parts(oracle, vae=copy.deepcopy(half).float())
    assert half.config.force_upcast
    assert (family.decode(latents(4)) == rounded.decode(latents(4))).all()
    assert half.dtype == torch.float16


def test_a_saved_pipeline_loads_with_plain_diffusers_bit_for_bit(family: StableDiffusionXL, tmp_path: Path) -> None:
    student = narrow(family.denoiser, stage_widths(family.denoiser.config, 0.5))
    save_pipeline(family, student, tmp_path / "student", card="# A card\n")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", use_safetensors=True)
    assert type(pipeline) is StableDiffusionXLPipeline
    loaded = pipeline.unet.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in student.state_dict().items())
    assert not [*tmp_path.rglob("*.bin")]


def test_a_refiner_is_refused(oracle: StableDiffusionXLPipeline) -> None:
    refiner = UNet2DConditionModel(**(TINY | {"projection_class_embeddings_input_dim": 20 + 5 * 8}))
    with pytest.raises(CondistillError, match=r"input_dim 60; .* and 68, for pooled text and 6 sizes; give a base"):
        with_parts(oracle, unet=refiner)


# costs


@pytest.mark.slow
def test_stable_diffusion_xl_has_the_published_size() -> None:
    with torch.device("meta"):
        denoiser = UNet2DConditionModel(**SDXL)
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
        denoiser = UNet2DConditionModel(**SDXL)
    # 2.99 T of convolutions and linear layers; inside attention, per transformer block, 2 L (L + 77) C
    attention = sum(
        count * 2 * length * (length + 77) * width for length, width, count in [(64**2, 640, 10), (32**2, 1280, 60)]
    )
    assert macs(denoiser) == pytest.approx(2.99e12 + attention, rel=2e-3)


@pytest.mark.slow
def test_the_whole_way_ends_in_a_student_that_diffusers_draws_with(directory: Path, tmp_path: Path) -> None:
    student = check_end_to_end(directory, tmp_path, {"width": 0.5})
    assert type(student) is StableDiffusionXLPipeline
    assert student.unet.add_embedding.linear_2.out_features == 32
    image = student("a small red star", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


@pytest.mark.slow
def test_a_student_learns_to_be_told_its_guidance_and_to_take_few_steps(directory: Path, tmp_path: Path) -> None:
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
