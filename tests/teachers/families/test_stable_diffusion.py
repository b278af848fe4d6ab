from __future__ import annotations

import copy
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import check_end_to_end
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from condistill.errors import CondistillError
from condistill.pipelines.save import save_pipeline
from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion import StableDiffusion
from condistill.teachers.family import Family

PROMPTS = ["a large red star at the top on snow", ""]


@pytest.fixture(scope="module")
def oracle(tiny_pipeline_dir: Path) -> StableDiffusionPipeline:
    """The same pipeline, loaded by diffusers alone."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(params=["epsilon", "v_prediction"])
def family(request: pytest.FixtureRequest, tiny_family: Family, tiny_v_family: Family) -> Family:
    return tiny_family if request.param == "epsilon" else tiny_v_family


def latents(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def with_scheduler(oracle: StableDiffusionPipeline, scheduler: Any) -> StableDiffusion:
    return StableDiffusion(StableDiffusionPipeline(**{**oracle.components, "scheduler": scheduler}))


def test_a_prediction_is_what_the_denoiser_says_to_the_encoded_prompt(
    tiny_family: Family, oracle: StableDiffusionPipeline
) -> None:
    timesteps = torch.tensor([3, 977])
    with torch.no_grad():
        embeds, _ = oracle.encode_prompt(PROMPTS, oracle.device, 1, False)
        expected = oracle.unet(latents(0), timesteps, encoder_hidden_states=embeds).sample
        given = tiny_family.predict(tiny_family.denoiser, latents(0), timesteps, tiny_family.encode(PROMPTS))
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_a_denoiser_in_half_precision_is_asked_in_its_own_dtype_and_answers_in_float32(tiny_family: Family) -> None:
    half = copy.deepcopy(tiny_family.denoiser).to(torch.bfloat16)
    with torch.no_grad():
        condition, timesteps = tiny_family.encode(PROMPTS), torch.tensor([3, 977])
        given = tiny_family.predict(half, latents(0), timesteps, condition)
        full = tiny_family.predict(tiny_family.denoiser, latents(0), timesteps, condition)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, full, rtol=0.1, atol=0.1)


def test_an_embedding_is_the_mean_of_the_text_less_the_empty_prompts_of_unit_length(
    tiny_family: Family, oracle: StableDiffusionPipeline
) -> None:
    prompts = ["a large red star at the top on snow", "", "a small blue box"]
    with torch.no_grad():
        embeds, _ = oracle.encode_prompt(prompts, oracle.device, 1, False)
    means = embeds.double().mean(1)
    said = means - means[1]
    given = tiny_family.text_embedding(prompts)
    assert given.dtype == torch.float32
    assert not given[1].any()
    for i in (0, 2):
        torch.testing.assert_close(given[i].double(), said[i] / said[i].norm(), rtol=1e-4, atol=1e-5)


def test_a_condition_on_the_way_to_another_is_their_weighted_sum() -> None:
    one, two = (Condition({"a": torch.full((3, 2, 2), v), "b": torch.full((3,), -v)}) for v in (1.0, 5.0))
    between = one.lerp(two, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert between.tensors["a"][:, 0, 0].tolist() == [1, 2, 5]
    assert between.tensors["b"].tolist() == [-1, -2, -5]
    assert between.tensors["a"].shape == (3, 2, 2)
    half = one.to(torch.bfloat16).lerp(two.to(torch.bfloat16), torch.tensor([0.5] * 3))
    assert half.tensors["a"].dtype == torch.bfloat16


def test_only_what_is_blended_attends_to_the_tokens_of_both() -> None:
    short, long = (Condition({"mask": torch.tensor([row] * 3)}) for row in ([1, 0, 0], [0, 1, 1]))
    between = short.lerp(long, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)).tensors["mask"]
    assert between.dtype == torch.int64
    assert between.tolist() == [[1, 0, 0], [1, 1, 1], [0, 1, 1]]


def test_noise_is_added_as_the_scheduler_adds_it(family: Family) -> None:
    timesteps = torch.tensor([0, 500])
    expected = DDPMScheduler.from_config(family.pipeline.scheduler.config).add_noise(latents(0), latents(1), timesteps)
    torch.testing.assert_close(family.noise.add_noise(latents(0), latents(1), timesteps), expected, rtol=0, atol=0)


def test_noise_is_added_in_training_proportions_whatever_sampler_the_pipeline_has(
    oracle: StableDiffusionPipeline,
) -> None:
    sampler = EulerDiscreteScheduler.from_config(oracle.scheduler.config)
    family = with_scheduler(oracle, sampler)
    timesteps = torch.tensor([20, 800])
    share = sampler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    expected = share.sqrt() * latents(0) + (1 - share).sqrt() * latents(1)
    torch.testing.assert_close(family.noise.add_noise(latents(0), latents(1), timesteps), expected)


def test_an_epsilon_teacher_is_right_where_it_finds_the_noise(tiny_family: Family) -> None:
    assert torch.equal(tiny_family.noise.target(latents(0), latents(1), torch.tensor([0, 999])), latents(1))


def test_a_velocity_teacher_is_right_where_it_finds_the_schedulers_velocity(tiny_v_family: Family) -> None:
    timesteps = torch.tensor([1, 700])
    scheduler = tiny_v_family.pipeline.scheduler
    assert tiny_v_family.noise.prediction_type == "v_prediction"
    expected = scheduler.get_velocity(latents(0), latents(1), timesteps)
    torch.testing.assert_close(tiny_v_family.noise.target(latents(0), latents(1), timesteps), expected, rtol=0, atol=0)


def test_timesteps_cover_the_schedule_evenly(family: Family) -> None:
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    timesteps = family.noise.timesteps(uniform)
    assert timesteps.dtype == torch.int64
    assert timesteps.tolist() == list(range(1000))
    edges = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert family.noise.timesteps(edges).tolist() == [0, 999]


def test_the_noise_level_is_the_share_of_the_schedule(family: Family) -> None:
    levels = family.noise.noise_level(torch.tensor([0, 250, 999]))
    torch.testing.assert_close(levels, torch.tensor([0.0, 0.25, 0.999]))


def test_the_signal_share_is_the_schedulers_own(family: Family) -> None:
    timesteps = torch.tensor([0, 10, 999])
    assert torch.equal(family.noise.alpha_bar(timesteps), family.pipeline.scheduler.alphas_cumprod[timesteps])


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipelines_own_call(
    tiny_family: Family, oracle: StableDiffusionPipeline, guidance_scale: float
) -> None:
    settings = {"num_inference_steps": 3, "guidance_scale": guidance_scale}
    expected = oracle(prompt=PROMPTS, latents=latents(2), output_type="latent", **settings).images
    given = tiny_family.sample(tiny_family.denoiser, PROMPTS, latents(2), **settings)
    assert given.dtype == torch.float32
    assert torch.equal(given, expected)


def test_samples_are_guided_away_from_the_unconditional_prediction(family: Family) -> None:
    """A sampling loop written anew: DDIM over epsilon_0 + w (epsilon_c - epsilon_0)."""
    scheduler = DDIMScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(3)
    x_t = latents(2)
    condition, null = family.encode(PROMPTS), family.encode(["", ""])
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            both = [family.predict(family.denoiser, x_t, timestep.expand(2), c) for c in (condition, null)]
            x_t = scheduler.step(both[1] + 4.0 * (both[0] - both[1]), timestep, x_t).prev_sample
    given = family.sample(family.denoiser, PROMPTS, latents(2), num_inference_steps=3, guidance_scale=4.0)
    torch.testing.assert_close(given, x_t, rtol=1e-4, atol=1e-4)


def test_noise_added_on_the_way_comes_from_each_images_own_seed(oracle: StableDiffusionPipeline) -> None:
    family = with_scheduler(oracle, DDPMScheduler.from_config(oracle.scheduler.config))

    def draw(*seeds: int) -> torch.Tensor:
        n = len(seeds)
        noise = latents(3, 1).expand(n, -1, -1, -1)
        settings = {"num_inference_steps": 2, "guidance_scale": 1.0}
        return family.sample(family.denoiser, [""] * n, noise, seeds=seeds, **settings)

    together = draw(5, 6)
    torch.testing.assert_close(together[1:], draw(6), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_the_teacher_is_back_in_its_pipeline_after_another_denoiser_was_used(tiny_family: Family) -> None:
    teacher, other = tiny_family.denoiser, torch.nn.Linear(1, 1)
    in_place = []

    def use() -> None:
        with tiny_family.using(other) as pipeline:
            in_place.append(pipeline.unet)
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert in_place == [other]
    assert tiny_family.denoiser is teacher


def test_latents_are_decoded_to_the_pipelines_own_pixels(tiny_family: Family, oracle: StableDiffusionPipeline) -> None:
    settings = {"num_inference_steps": 1, "guidance_scale": 1.0}
    floats = oracle(prompt=PROMPTS, latents=latents(4), output_type="np", **settings).images
    images = tiny_family.decode(tiny_family.sample(tiny_family.denoiser, PROMPTS, latents(4), **settings))
    assert images.dtype == np.uint8
    assert images.shape == (2, 64, 64, 3)
    # half-way values may round either way
    assert np.abs(images - 255.0 * floats).max() <= 0.5 + 1e-3


def test_the_empty_prompt_is_the_unconditional_input_of_the_pipelines_call(
    tiny_family: Family, oracle: StableDiffusionPipeline
) -> None:
    with torch.no_grad():
        _, negative = oracle.encode_prompt(PROMPTS, oracle.device, 1, True)
    null = tiny_family.encode(["", ""])
    assert len(null) == 2
    assert torch.equal(null.tensors["prompt_embeds"], negative)


def test_a_latent_has_the_shape_that_the_pipeline_draws(tiny_family: Family, oracle: StableDiffusionPipeline) -> None:
    drawn = oracle(prompt="", output_type="latent", num_inference_steps=1, guidance_scale=1.0).images
    assert tiny_family.latent_shape == tuple(drawn.shape[1:])
    assert tiny_family.encode([""]).tensors["prompt_embeds"].shape[1] == tiny_family.text_length


def test_a_teacher_is_frozen(tiny_family: Family) -> None:
    modules = [part for part in tiny_family.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert modules
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert not any(module.training for module in modules)


def test_conditions_are_indexed_joined_and_moved_as_one() -> None:
    condition = Condition({"embeds": torch.arange(6.0).view(3, 2), "pooled": torch.arange(3.0)})
    assert len(condition) == 3
    part = condition[torch.tensor([True, False, True])]
    assert part.tensors["embeds"].tolist() == [[0, 1], [4, 5]]
    assert part.tensors["pooled"].tolist() == [0, 2]
    joined = Condition.cat([part, condition[1:2]])
    assert joined.tensors["pooled"].tolist() == [0, 2, 1]
    assert {t.dtype for t in joined.to(torch.float64).tensors.values()} == {torch.float64}


@pytest.fixture(scope="module")
def saved(tiny_family: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A saved pipeline with another denoiser, and that denoiser's weights."""
    student = copy.deepcopy(tiny_family.denoiser).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    directory = tmp_path_factory.mktemp("saved") / "pipeline"
    save_pipeline(tiny_family, student, directory, card="# A card\n")
    return directory, weights


def test_a_saved_pipeline_loads_with_plain_diffusers_bit_for_bit(
    saved: tuple[Path, dict[str, torch.Tensor]], tiny_family: Family
) -> None:
    directory, weights = saved
    pipeline = DiffusionPipeline.from_pretrained(directory, use_safetensors=True)
    assert type(pipeline) is StableDiffusionPipeline
    loaded = pipeline.unet.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    for part in ("vae", "text_encoder"):
        teacher = getattr(tiny_family.pipeline, part).state_dict()
        assert all(torch.equal(getattr(pipeline, part).state_dict()[k], tensor) for k, tensor in teacher.items())
    assert (directory / "README.md").read_text() == "# A card\n"


def test_a_saved_pipeline_names_no_folder_it_came_from(
    saved: tuple[Path, dict[str, torch.Tensor]], tiny_pipeline_dir: Path
) -> None:
    files = list(saved[0].rglob("*.json"))
    assert len(files) > 4
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "_name_or_path" not in json.loads(text), file
        assert str(tiny_pipeline_dir) not in text, file
        assert str(saved[0]) not in text, file


def test_a_saved_pipeline_holds_no_pickle(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    kinds = {file.suffix for file in saved[0].rglob("*") if file.is_file()}
    assert ".safetensors" in kinds
    assert kinds <= {".safetensors", ".json", ".txt", ".md"}


def test_a_save_that_fails_leaves_the_old_pipeline(
    saved: tuple[Path, dict[str, torch.Tensor]],
    tiny_family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(saved[0], directory)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tiny_family.pipeline.text_encoder, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pipeline(tiny_family, tiny_family.denoiser, directory, card="new")
    assert (directory / "README.md").read_text() == "# A card\n"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_a_teacher_of_another_parametrisation_is_refused(oracle: StableDiffusionPipeline) -> None:
    scheduler = DDIMScheduler.from_config(oracle.scheduler.config, prediction_type="sample")
    with pytest.raises(CondistillError, match=r"prediction_type 'sample'; .* 'epsilon' and 'v_prediction'"):
        with_scheduler(oracle, scheduler)


def test_a_consistency_model_is_no_teacher(oracle: StableDiffusionPipeline) -> None:
    with pytest.raises(CondistillError, match=r"LCMScheduler: .* give the pipeline that it was distilled from"):
        with_scheduler(oracle, LCMScheduler.from_config(oracle.scheduler.config))


@pytest.mark.parametrize(
    "scheduler",
    [EDMEulerScheduler(), EulerDiscreteScheduler(timestep_type="continuous"), FlowMatchEulerDiscreteScheduler()],
)
def test_noise_without_betas_over_whole_timesteps_is_refused(oracle: StableDiffusionPipeline, scheduler: Any) -> None:
    with pytest.raises(
        CondistillError, match=rf"scheduler is {type(scheduler).__name__}, .* needs a scheduler that has, such as DDPM"
    ):
        with_scheduler(oracle, scheduler)


def test_an_image_conditioned_teacher_is_refused(oracle: StableDiffusionPipeline) -> None:
    from condistill.miniature.build import build_denoiser

    denoiser = build_denoiser(in_channels=9, block_out_channels=(16, 32, 32), norm_num_groups=4)
    pipeline = StableDiffusionPipeline(**{**oracle.components, "unet": denoiser})
    with pytest.raises(
        CondistillError, match=r"takes 9 channels .* have 4; .* stable_diffusion needs a U-Net that takes 4\."
    ):
        StableDiffusion(pipeline)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_is_the_ddim_schedulers(tiny_family: Family, tiny_v_family: Family, prediction_type: str) -> None:
    family = tiny_family if prediction_type == "epsilon" else tiny_v_family
    scheduler = type(family.pipeline.scheduler).from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(10)
    timesteps = family.noise.solver_timesteps(10)
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    prediction, x_t = latents(1), latents(2)
    for now, following in pairwise(timesteps):
        expected = scheduler.step(prediction, now, x_t).prev_sample
        given = family.noise.step(prediction, x_t, now.expand(len(x_t)), following.expand(len(x_t)))
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
        implied = family.noise.implied_prediction(given, x_t, now.expand(len(x_t)), following.expand(len(x_t)))
        torch.testing.assert_close(implied, prediction, rtol=1e-4, atol=1e-4)
    last = torch.full((len(x_t),), int(timesteps[-1]))
    expected = scheduler.step(prediction, timesteps[-1], x_t).prev_sample
    torch.testing.assert_close(family.noise.step(prediction, x_t, last, torch.full_like(last, -1)), expected)


# a guidance scale as an input


@pytest.fixture(scope="module")
def told(tiny_family: Family) -> UNet2DConditionModel:
    """A denoiser that takes the guidance scale, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return UNet2DConditionModel.from_config({**tiny_family.denoiser.config, "time_cond_proj_dim": 256}).eval()


@pytest.mark.parametrize("scale", [1.5, 2.3, 7.5, 13.0])
def test_a_guidance_scale_is_told_as_the_pipelines_own_call_tells_it(
    tiny_family: Family, told: UNet2DConditionModel, scale: float
) -> None:
    heard: list[dict[str, Any]] = []
    handle = told.register_forward_pre_hook(lambda _m, _a, kwargs: heard.append(kwargs), with_kwargs=True)
    try:
        noise = latents(0)
        drawn = tiny_family.sample(told, PROMPTS, noise, num_inference_steps=1, guidance_scale=scale)
        condition = tiny_family.encode(PROMPTS).with_guidance_scale(torch.full((2,), scale, dtype=torch.float64))
        with torch.no_grad():
            prediction = tiny_family.predict(told, noise, torch.tensor([999, 999]), condition)
    finally:
        handle.remove()
    assert torch.equal(heard[0]["timestep_cond"], heard[1]["timestep_cond"])
    end = tiny_family.noise.step(prediction, noise, torch.tensor([999, 999]), torch.tensor([-1, -1]))
    torch.testing.assert_close(drawn, end, rtol=1e-3, atol=1e-3)


def test_every_sample_is_told_its_own_scale_and_other_denoisers_are_told_none(
    tiny_family: Family, told: UNet2DConditionModel
) -> None:
    timesteps, condition = torch.tensor([500, 500]), tiny_family.encode(["a star", "a star"])
    x_t = latents(0)[:1].repeat(2, 1, 1, 1)
    with_scale = condition.with_guidance_scale(torch.tensor([2.0, 8.0], dtype=torch.float64))
    with torch.no_grad():
        two, eight = tiny_family.predict(told, x_t, timesteps, with_scale)
        same = tiny_family.predict(told, x_t, timesteps, with_scale[[1, 1]])
        plain = [tiny_family.predict(tiny_family.denoiser, x_t, timesteps, c) for c in (with_scale, condition)]
    assert (two - eight).abs().max() > 1e-3
    torch.testing.assert_close(same, torch.stack([eight, eight]))
    assert torch.equal(*plain)


# consistency


def lcm_of(family: Family, solver_steps: int) -> LCMScheduler:
    config = {"original_inference_steps": solver_steps, "clip_sample": False}
    return LCMScheduler.from_config(family.pipeline.scheduler.config, **config)


def test_the_consistency_function_is_the_lcm_schedulers_denoised(family: Family) -> None:
    scheduler = lcm_of(family, 50)
    scheduler.set_timesteps(50)
    prediction, x_t = latents(1), latents(2)
    for t in scheduler.timesteps:
        expected = scheduler.step(prediction, t, x_t, generator=torch.Generator()).denoised
        here = t.expand(len(x_t))
        given = family.noise.path_end(prediction, x_t, here)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            family.noise.consistent_prediction(given, x_t, here), prediction, rtol=1e-3, atol=1e-3
        )


def test_the_consistency_function_is_that_of_the_paper_in_float64(family: Family) -> None:
    prediction, x_t = latents(1).double(), latents(2).double()
    alphas = family.pipeline.scheduler.alphas_cumprod.double()
    for t in (19, 499, 999):
        a, scaled = alphas[t], 10.0 * t
        x_0 = (x_t - (1 - a).sqrt() * prediction) / a.sqrt()
        if family.noise.prediction_type == "v_prediction":
            x_0 = a.sqrt() * x_t - (1 - a).sqrt() * prediction
        expected = 0.25 / (scaled**2 + 0.25) * x_t + scaled / (scaled**2 + 0.25) ** 0.5 * x_0
        given = family.noise.path_end(prediction.float(), x_t.float(), torch.tensor([t, t]))
        torch.testing.assert_close(given, expected.float(), rtol=1e-4, atol=1e-4)


def test_at_timestep_0_a_state_is_its_own_end_whatever_is_predicted(family: Family) -> None:
    x_t = latents(2)
    assert torch.equal(family.noise.path_end(latents(1), x_t, torch.zeros(2, dtype=torch.long)), x_t)


@pytest.mark.parametrize("solver_steps", [10, 50, 200])
def test_however_many_steps_are_drawn_they_visit_timesteps_of_the_training(family: Family, solver_steps: int) -> None:
    trained_at = set(family.noise.solver_timesteps(solver_steps).tolist())
    solver = family.noise.consistency_solver(solver_steps)
    assert solver.config.prediction_type == family.noise.prediction_type
    assert (solver.config.timestep_scaling, solver.config.clip_sample) == (10.0, False)
    for count in range(1, solver_steps + 1):
        solver.set_timesteps(count)
        visited = solver.timesteps.tolist()
        assert len(set(visited)) == count
        assert visited[0] == 999
        assert trained_at.issuperset(visited)


def test_the_whole_way_ends_in_a_student_that_diffusers_draws_with(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    student = check_end_to_end(tiny_pipeline_dir, tmp_path, {"width": 0.5})
    image = student("a small red star", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
