from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from condistill.distill.random_conditioning import output_weight
from condistill.errors import CondistillError
from condistill.miniature.build import build_scheduler
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.grid import END


@pytest.fixture(params=["epsilon", "v_prediction"])
def scheduler(request: pytest.FixtureRequest) -> DDIMScheduler:
    """The scheduler of a teacher; the oracle of these tests."""
    return build_scheduler(request.param)


@pytest.fixture
def noise(scheduler: DDIMScheduler) -> DiffusionSchedule:
    return schedule(scheduler)


def schedule(scheduler: Any) -> DiffusionSchedule:
    return DiffusionSchedule(scheduler, family="toy")


def latents(seed: int) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


# training


def test_noise_is_added_as_the_scheduler_adds_it(noise: DiffusionSchedule, scheduler: DDIMScheduler) -> None:
    timesteps = torch.tensor([0, 500])
    expected = DDPMScheduler.from_config(scheduler.config).add_noise(latents(0), latents(1), timesteps)
    assert torch.equal(noise.add_noise(latents(0), latents(1), timesteps), expected)


def test_noise_is_added_in_training_proportions_whatever_the_pipelines_sampler() -> None:
    sampler = EulerDiscreteScheduler.from_config(build_scheduler().config)
    timesteps = torch.tensor([20, 800])
    share = sampler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    expected = share.sqrt() * latents(0) + (1 - share).sqrt() * latents(1)
    torch.testing.assert_close(schedule(sampler).add_noise(latents(0), latents(1), timesteps), expected)


def test_the_target_is_the_noise_or_the_schedulers_velocity(noise: DiffusionSchedule, scheduler: DDIMScheduler) -> None:
    timesteps = torch.tensor([1, 700])
    target = noise.target(latents(0), latents(1), timesteps)
    assert noise.prediction_type == scheduler.config.prediction_type
    if noise.prediction_type == "epsilon":
        assert torch.equal(target, latents(1))
    else:
        assert torch.equal(target, scheduler.get_velocity(latents(0), latents(1), timesteps))


def test_timesteps_cover_the_schedule_evenly(noise: DiffusionSchedule) -> None:
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    timesteps = noise.timesteps(uniform)
    assert timesteps.dtype == torch.int64
    assert timesteps.tolist() == list(range(1000))
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert noise.timesteps(ends).tolist() == [0, 999]


def test_the_noise_level_is_the_timestep_divided_by_their_number(noise: DiffusionSchedule) -> None:
    levels = noise.noise_level(torch.tensor([0, 250, 999]))
    torch.testing.assert_close(levels, torch.tensor([0.0, 0.25, 0.999]))


def test_alpha_bar_is_that_of_the_scheduler(noise: DiffusionSchedule, scheduler: DDIMScheduler) -> None:
    timesteps = torch.tensor([0, 10, 999])
    assert torch.equal(noise.alpha_bar(timesteps), scheduler.alphas_cumprod[timesteps])


# solver


def test_a_solver_step_is_the_ddim_schedulers(noise: DiffusionSchedule, scheduler: DDIMScheduler) -> None:
    scheduler.set_timesteps(10)
    timesteps = noise.solver_timesteps(10)
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    prediction, x_t = latents(1), latents(2)
    for timestep, next_timestep in pairwise([*timesteps, torch.tensor(END)]):
        expected = scheduler.step(prediction, timestep, x_t).prev_sample
        here, there = timestep.expand(2), next_timestep.expand(2)
        x_next = noise.step(prediction, x_t, here, there)
        torch.testing.assert_close(x_next, expected, rtol=1e-5, atol=1e-5)
        if next_timestep != END:
            implied = noise.implied_prediction(x_next, x_t, here, there)
            torch.testing.assert_close(implied, prediction, rtol=1e-4, atol=1e-4)


# consistency models


def lcm_scheduler(scheduler: DDIMScheduler, solver_steps: int) -> LCMScheduler:
    return LCMScheduler.from_config(scheduler.config, original_inference_steps=solver_steps, clip_sample=False)


def test_the_consistency_function_is_the_lcm_schedulers(noise: DiffusionSchedule, scheduler: DDIMScheduler) -> None:
    lcm = lcm_scheduler(scheduler, 50)
    lcm.set_timesteps(50)
    prediction, x_t = latents(1), latents(2)
    for timestep in lcm.timesteps:
        expected = lcm.step(prediction, timestep, x_t, generator=torch.Generator()).denoised
        here = timestep.expand(2)
        end = noise.path_end(prediction, x_t, here)
        torch.testing.assert_close(end, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(noise.consistent_prediction(end, x_t, here), prediction, rtol=1e-3, atol=1e-3)


def test_the_consistency_function_is_that_of_the_paper(noise: DiffusionSchedule, scheduler: DDIMScheduler) -> None:
    prediction, x_t = latents(1).double(), latents(2).double()
    alphas = scheduler.alphas_cumprod.double()
    for t in (19, 499, 999):
        a, scaled = alphas[t], 10.0 * t
        x_0 = (x_t - (1 - a).sqrt() * prediction) / a.sqrt()
        if noise.prediction_type == "v_prediction":
            x_0 = a.sqrt() * x_t - (1 - a).sqrt() * prediction
        expected = 0.25 / (scaled**2 + 0.25) * x_t + scaled / (scaled**2 + 0.25) ** 0.5 * x_0
        end = noise.path_end(prediction.float(), x_t.float(), torch.tensor([t, t]))
        torch.testing.assert_close(end, expected.float(), rtol=1e-4, atol=1e-4)


def test_at_timestep_0_the_consistency_function_is_the_state_itself(noise: DiffusionSchedule) -> None:
    x_t = latents(2)
    assert torch.equal(noise.path_end(latents(1), x_t, torch.zeros(2, dtype=torch.long)), x_t)


@pytest.mark.parametrize("solver_steps", [10, 50, 200])
def test_a_consistency_model_is_sampled_only_at_timesteps_of_its_training(
    noise: DiffusionSchedule, solver_steps: int
) -> None:
    trained_at = set(noise.solver_timesteps(solver_steps).tolist())
    solver = noise.consistency_solver(solver_steps)
    assert solver.config.prediction_type == noise.prediction_type
    assert (solver.config.timestep_scaling, solver.config.clip_sample) == (10.0, False)
    for count in range(1, solver_steps + 1):
        solver.set_timesteps(count)
        visited = solver.timesteps.tolist()
        assert len(set(visited)) == count
        assert visited[0] == 999
        assert trained_at.issuperset(visited)


# schedulers that are refused


def test_another_prediction_type_is_refused() -> None:
    scheduler = DDIMScheduler.from_config(build_scheduler().config, prediction_type="sample")
    with pytest.raises(CondistillError, match=r"prediction_type 'sample'; family toy .* 'epsilon' and 'v_prediction'"):
        schedule(scheduler)


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
def test_a_consistency_model_cannot_be_a_teacher(kind: Any) -> None:
    with pytest.raises(CondistillError, match=rf"{kind.__name__}: .* give the pipeline that it was distilled from"):
        schedule(kind())


@pytest.mark.parametrize(
    "scheduler",
    [EDMEulerScheduler(), EulerDiscreteScheduler(timestep_type="continuous"), FlowMatchEulerDiscreteScheduler()],
)
def test_a_scheduler_without_betas_over_whole_timesteps_is_refused(scheduler: Any) -> None:
    name = type(scheduler).__name__
    with pytest.raises(CondistillError, match=rf"scheduler is {name}, .* family toy needs .* such as DDPM"):
        schedule(scheduler)


# schedules without signal at their last timestep (Lin et al., WACV 2024, arXiv 2305.08891)


def zero_snr(prediction_type: str, kind: Any = DDIMScheduler) -> Any:
    return kind.from_config(build_scheduler(prediction_type).config, rescale_betas_zero_snr=True)


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler])
def test_a_teacher_that_predicts_noise_where_no_signal_is_left_is_refused(kind: Any) -> None:
    with pytest.raises(CondistillError, match=r"rescale_betas_zero_snr .* needs prediction_type 'v_prediction'"):
        schedule(zero_snr("epsilon", kind))


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_teacher_that_predicts_the_velocity_where_no_signal_is_left_has_finite_steps_and_targets(kind: Any) -> None:
    noise = schedule(zero_snr("v_prediction", kind))
    first = noise.solver_timesteps(4)
    assert noise.alpha_bar(first)[0] == 0
    x_t, prediction = (latents(seed)[:1].repeat(4, 1, 1, 1) for seed in (0, 1))
    following = torch.cat([first[1:], torch.tensor([END])])
    x_next = noise.step(prediction, x_t, first, following)
    assert x_next.isfinite().all()
    torch.testing.assert_close(noise.implied_prediction(x_next, x_t, first, following), prediction, atol=1e-4, rtol=0)
    end = noise.path_end(prediction, x_t, first)
    torch.testing.assert_close(noise.consistent_prediction(end, x_t, first), prediction, atol=1e-3, rtol=0)
    assert noise.target(x_t, prediction, first).isfinite().all()
    for weighting in ("native", "epsilon", "x0", "v", "min_snr"):
        weight = output_weight(weighting, noise.alpha_bar(first), prediction_type=noise.prediction_type)
        assert weight.isfinite().all(), weighting


@pytest.mark.parametrize(
    "betas", [{"beta_start": float("nan")}, {"beta_start": 0.0, "beta_end": 0.0}, {"trained_betas": [-0.1] * 1000}]
)
def test_betas_that_add_no_noise_are_refused(betas: dict[str, float]) -> None:
    broken = DDIMScheduler.from_config(build_scheduler().config, **betas)
    with pytest.raises(CondistillError, match=r"do not add noise from step to step; restore beta_start"):
        schedule(broken)
