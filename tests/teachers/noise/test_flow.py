from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from tiny import build_flux, build_sd3
from torch import Tensor, nn

from condistill.cache.latents import LatentCache
from condistill.config.distill import DistillSettings, LossSettings
from condistill.distill.batches import BatchSource
from condistill.distill.loss_terms import Comparison
from condistill.distill.objective import Objective
from condistill.distill.paths import Paths
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.states import Sample, noised_latents
from condistill.distill.student import StudentForward
from condistill.errors import CondistillError
from condistill.pipelines.save import save_pipeline
from condistill.prompts.pool import PromptPool
from condistill.students.derive import Student
from condistill.students.variants import check_steps
from condistill.teachers.families.flux import Flux
from condistill.teachers.families.stable_diffusion_3 import StableDiffusion3
from condistill.teachers.family import Family
from condistill.teachers.noise.flow import FlowSchedule
from condistill.teachers.noise.grid import END, SolverGrid

KINDS = ("sd3", "sd3_dynamic", "flux_dev", "flux_schnell")


def build(kind: str) -> Family:
    if kind == "sd3":
        return StableDiffusion3(build_sd3())
    if kind == "sd3_dynamic":
        return StableDiffusion3(build_sd3(scheduler={"use_dynamic_shifting": True, "time_shift_type": "linear"}))
    return Flux(build_flux(guidance_embeds=kind == "flux_dev"), resolution=64)


@pytest.fixture(scope="module")
def families() -> dict[str, Family]:
    return {kind: build(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    return families[request.param]


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def trajectory(
    pipeline: Any, steps: int, prompt: str = "", noise: Tensor | None = None, **settings: Any
) -> tuple[list[float], list[Tensor]]:
    """Return the timesteps and the states that a pipeline's own call visits."""
    timesteps, states = [], []

    def keep(_pipeline: Any, _step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        timesteps.append(float(timestep))
        states.append(tensors["latents"].clone())
        return tensors

    size = {"height": 64, "width": 64, "output_type": "latent"}
    pipeline(prompt, num_inference_steps=steps, latents=noise, callback_on_step_end=keep, **size, **settings)
    return timesteps, states


def scheduler_after_call(family: Family, steps: int) -> FlowMatchEulerDiscreteScheduler:
    """Return the pipeline's scheduler, with the timesteps that the pipeline's own call has set."""
    with torch.no_grad():
        trajectory(family.pipeline, steps)
    return family.pipeline.scheduler


# training


def test_noise_is_added_as_the_scheduler_adds_it(family: Family) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(family.pipeline.scheduler.config)
    timesteps = scheduler.timesteps[[100, 900]]  # training timesteps
    expected = scheduler.scale_noise(latents(0), timesteps, latents(1))
    torch.testing.assert_close(family.noise.add_noise(latents(0), latents(1), timesteps), expected)


def test_the_noise_level_is_sigma(family: Family) -> None:
    scheduler = scheduler_after_call(family, 7)
    torch.testing.assert_close(family.noise.noise_level(scheduler.timesteps), scheduler.sigmas[:-1])
    assert family.noise.noise_level(scheduler.timesteps)[0] == 1


def test_alpha_bar_gives_the_signal_to_noise_ratio_of_the_flow(family: Family) -> None:
    sigma = torch.tensor([0.05, 0.5, 0.97], dtype=torch.float64)
    share = family.noise.alpha_bar(family.noise.total_timesteps * sigma).double()
    torch.testing.assert_close(share / (1 - share), ((1 - sigma) / sigma) ** 2, rtol=1e-4, atol=0)


def test_one_step_with_the_target_ends_at_the_image(family: Family) -> None:
    timesteps = torch.tensor([250.0, 800.0])
    x_0, epsilon = latents(0), latents(1)
    target = family.noise.target(x_0, epsilon, timesteps)
    x_t = family.noise.add_noise(x_0, epsilon, timesteps)
    torch.testing.assert_close(family.noise.step(target, x_t, timesteps, torch.full((2,), float(END))), x_0)
    assert family.noise.prediction_type == "flow"


def test_training_timesteps_have_the_shift_of_the_scheduler(family: Family) -> None:
    sigmas = torch.linspace(1, 0.001, 50, dtype=torch.float64)
    scheduler = scheduler_after_call(family, 2)
    mu = None
    if scheduler.config.use_dynamic_shifting:  # 16 tokens
        mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)
    scheduler.set_timesteps(sigmas=sigmas.tolist(), mu=mu)
    timesteps = family.noise.timesteps((sigmas - 0.001) / 0.999)
    assert timesteps.dtype == torch.float32
    torch.testing.assert_close(timesteps, scheduler.timesteps, rtol=1e-5, atol=1e-3)


def test_training_timesteps_are_above_0_and_at_most_pure_noise(family: Family) -> None:
    ends = family.noise.timesteps(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert 0 < ends[0] < 10
    assert 999 < ends[1] <= 1000


# solver


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_solver_visits_the_timesteps_of_the_pipelines_call(family: Family, steps: int) -> None:
    expected, _ = trajectory(family.pipeline, steps)
    timesteps = family.noise.solver_timesteps(steps)
    assert timesteps.dtype == torch.float32
    assert timesteps.tolist() == expected
    assert timesteps[0] == family.noise.total_timesteps


def test_a_solver_step_is_the_schedulers(family: Family) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(family.pipeline.scheduler.config)
    prediction, x_t = latents(1), latents(2)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.1], mu=1.0)
    for timestep, next_timestep in pairwise([*scheduler.timesteps, torch.tensor(float(END))]):
        expected = scheduler.step(prediction, timestep, x_t).prev_sample
        here, there = timestep.expand(2), next_timestep.expand(2)
        x_next = family.noise.step(prediction, x_t, here, there)
        torch.testing.assert_close(x_next, expected, rtol=1e-5, atol=1e-5)
        implied = family.noise.implied_prediction(x_next, x_t, here, there)
        torch.testing.assert_close(implied, prediction, rtol=1e-3, atol=1e-3)


def test_the_parts_of_a_step_are_equal_and_end_at_the_finished_latent(family: Family) -> None:
    here, end = torch.tensor([1000.0, 300.0]), torch.tensor([500.0, float(END)])
    parts = torch.stack([family.noise.between(here, end, part, 3) for part in range(4)])
    torch.testing.assert_close(parts.diff(dim=0), torch.tensor([[-500.0, -300.0]] * 3) / 3)
    torch.testing.assert_close(parts[-1], torch.tensor([500.0, 0.0]))


def test_a_grid_may_have_fractional_timesteps(families: dict[str, Family]) -> None:
    noise = families["flux_dev"].noise
    grid, timesteps = SolverGrid(noise, 5), noise.solver_timesteps(5)
    assert grid.below(timesteps).tolist() == [*timesteps[1:].tolist(), END]
    assert grid.below(timesteps - 1e-3).tolist() == [*timesteps[1:].tolist(), END]
    assert grid.below(torch.tensor([999.0])).item() == timesteps[1]


# few steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_a_saved_few_step_student_visits_its_training_timesteps_in_plain_diffusers(
    kind: str, scheduler: Any, families: dict[str, Family], tmp_path: Path
) -> None:
    """Also if the teacher's scheduler is of second order, or adds noise in its steps."""
    pipeline = families[kind].pipeline.__class__(**families[kind].pipeline.components)
    settings = {"stochastic_sampling": True} if scheduler is FlowMatchEulerDiscreteScheduler else {}
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    family: Family = type(families[kind])(pipeline, resolution=64)
    save_pipeline(family, family.denoiser, tmp_path / "student", card="", scheduler=family.noise.solver)
    student = DiffusionPipeline.from_pretrained(tmp_path / "student", use_safetensors=True)
    student.set_progress_bar_config(disable=True)
    noise = family.pack_latents(latents(0, 1))
    timesteps, states = trajectory(student, 4, noise=noise)
    assert timesteps == family.noise.solver_timesteps(4).tolist()
    _, states_again = trajectory(student, 4, noise=noise)
    assert torch.equal(states[-1], states_again[-1])


def test_a_few_step_student_learns_the_result_of_several_teacher_steps(families: dict[str, Family]) -> None:
    family = families["sd3"]
    settings = DistillSettings(batch_size=3, few_steps={"num_inference_steps": 3, "teacher_steps": 2})
    check_steps(family, settings)
    objective = Objective(family, settings, Accelerator(cpu=True), ())
    student = Student(family.denoiser, (), kept=(), maps=nn.ModuleList())  # type: ignore[arg-type]
    here = family.noise.solver_timesteps(3)
    x_t, replaced = latents(5, 3), torch.zeros(3, dtype=torch.bool)
    prompts = ["a small red star", "", "a large blue box"]
    sample = Sample(x_t, here, prompts, replaced, x_t, x_t)
    with torch.no_grad():
        predictions = objective.compare(StudentForward(family.predict, student, features=None), sample)
        end = torch.cat([here[1:], torch.zeros(1)])
        middle = (here + end) / 2
        condition = family.encode(prompts)
        x = x_t + ((middle - here) / 1000).view(-1, 1, 1, 1) * family.predict(family.denoiser, x_t, here, condition)
        x = x + ((end - middle) / 1000).view(-1, 1, 1, 1) * family.predict(family.denoiser, x, middle, condition)
    there = torch.cat([here[1:], torch.tensor([float(END)])])
    torch.testing.assert_close(family.noise.step(predictions.teacher, x_t, here, there), x, rtol=1e-4, atol=1e-4)


def test_a_flow_matching_teacher_cannot_train_a_consistency_model(family: Family) -> None:
    settings = DistillSettings(few_steps={"method": "consistency", "num_inference_steps": 2, "solver_steps": 10})
    with pytest.raises(CondistillError, match=re.escape("set few_steps.method: progressive")):
        check_steps(family, settings)


# denoising paths


@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
def test_a_path_from_noise_visits_the_states_of_the_pipelines_call(
    kind: str, families: dict[str, Family], tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    family, steps, rows, conditioning = families[kind], 4, slice(0, 2), RandomConditioning()
    guidance_range = (2.0, 6.0) if kind == "flux_dev" else None
    source = BatchSource(tiny_cache, tiny_pool, 5, 2, 2, guidance_range=guidance_range)
    settings = DistillSettings.model_validate(
        {"path": {"start": "noise", "num_inference_steps": steps}, "guidance_distillation": guidance_range}
    )
    paths = Paths(
        family,
        settings,
        conditioning,
        positions=source.positions,
        student=family.denoiser,
        accelerator=Accelerator(cpu=True),
    )
    samples: list[Sample] = []
    for step in range(2 * steps):
        batch = source(step)[0]
        sample = paths.place(step, rows, noised_latents(family, conditioning, batch), batch)
        condition = family.encode(sample.prompts)
        if sample.guidance_scale is not None:
            condition = condition.with_guidance_scale(sample.guidance_scale)
        with torch.no_grad():
            prediction = family.predict(family.denoiser, sample.x_t, sample.timesteps, condition)
        comparison = Comparison(
            sample=sample, noise=family.noise, settings=LossSettings(), teacher=prediction, student=prediction
        )
        paths.advance(comparison)
        samples.append(sample)
    total = family.noise.total_timesteps
    start = next(step for step in range(1, steps + 1) if samples[step].timesteps[0] == total)
    path = samples[start : start + steps]
    scale = 1.0 if path[0].guidance_scale is None else path[0].guidance_scale[0].item()
    noise = family.pack_latents(path[0].x_t[:1])
    timesteps, states = trajectory(family.pipeline, steps, path[0].prompts[0], noise, guidance_scale=scale)
    assert [sample.timesteps[0].item() for sample in path] == timesteps
    for sample, state in zip(path[1:], states, strict=False):
        torch.testing.assert_close(sample.x_t[:1], family.unpack_latents(state), rtol=1e-4, atol=1e-4)


# schedulers


def test_a_scheduler_that_is_not_set_to_flow_matching_is_refused() -> None:
    with pytest.raises(CondistillError, match="a DDIMScheduler, is not set to flow matching; family toy needs Flow"):
        FlowSchedule(DDIMScheduler(), family="toy", image_tokens=16)


def test_a_consistency_model_of_a_flow_cannot_be_a_teacher() -> None:
    with pytest.raises(
        CondistillError, match=r"FlowMatchLCMScheduler: .* give the pipeline that it was distilled from"
    ):
        FlowSchedule(FlowMatchLCMScheduler(), family="toy", image_tokens=16)


def test_the_flow_of_another_scheduler_keeps_its_shift(families: dict[str, Family]) -> None:
    sampler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    noise = FlowSchedule(sampler, family="toy", image_tokens=16)
    assert "use_flow_sigmas" not in noise.solver.config  # some pipelines read it and would behave differently
    assert torch.equal(noise.solver_timesteps(5), families["sd3"].noise.solver_timesteps(5))
