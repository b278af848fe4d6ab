"""Solver, targets and losses against the closed forms of Gaussian data in `tests/helpers/gaussian.py`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import gaussian
import pytest
import torch
from accelerate import Accelerator
from gaussian import GaussianDenoiser, GaussianFamily, GaussianPipeline
from torch import Tensor

from condistill.config.distill import DistillSettings
from condistill.distill import random_conditioning as rc
from condistill.distill.objective import Objective
from condistill.distill.states import Sample
from condistill.teachers import register_family
from condistill.teachers.noise.grid import END, SolverGrid

KINDS = ("epsilon", "v_prediction", "flow")
PROMPTS = ["a", "b", "c", ""]


@pytest.fixture(autouse=True)
def registered(own_registries: None) -> None:
    """Register the family for one test."""
    register_family(GaussianFamily)


@pytest.fixture(params=KINDS)
def family(request: pytest.FixtureRequest) -> GaussianFamily:
    pipeline: Any = GaussianPipeline(request.param)
    return GaussianFamily(pipeline)


@pytest.fixture
def ideal(family: GaussianFamily) -> GaussianDenoiser:
    denoiser: Any = family.denoiser
    return denoiser


def states(count: int, seed: int = 1) -> Tensor:
    """Return standard normal states, float64 `[count, C, h, w]`."""
    return torch.randn(count, *gaussian.SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solver_step(ideal: GaussianDenoiser, x: Tensor, start: Tensor, end: Tensor, means: Tensor) -> Tensor:
    """Take one first-order step of the ODE in float64: hold the predicted noise and x_0, and change the level."""
    prediction, (alpha, sigma) = ideal(x, start, means).flatten(1), ideal.level(start)
    x_t = x.flatten(1)
    x_0, noise = {
        "epsilon": lambda: ((x_t - sigma * prediction) / alpha, prediction),
        "v_prediction": lambda: (alpha * x_t - sigma * prediction, sigma * x_t + alpha * prediction),
        "flow": lambda: (x_t - sigma * prediction, x_t + (1 - sigma) * prediction),
    }[ideal.kind]()
    after = ideal.level(end)
    return (after.alpha * x_0 + after.sigma * noise).view_as(x)


# the solver


def test_solver_steps_converge_to_the_solution_of_the_ode_at_first_order(
    family: GaussianFamily, ideal: GaussianDenoiser
) -> None:
    x_start, means = states(4), gaussian.means_of(PROMPTS)
    condition, errors = family.encode(PROMPTS), []
    for count in (50, 100, 200):
        grid = SolverGrid(family.noise, count)
        x, timesteps = x_start, grid.first.repeat(4)
        exact = ideal.flow_map(x_start, timesteps, torch.full_like(timesteps, END), means)
        while (timesteps != END).all():
            after = grid.below(timesteps)
            x = family.noise.step(family.predict(ideal, x, timesteps, condition), x, timesteps, after)
            timesteps = after
        errors.append((x - exact).square().mean().sqrt().item())
    assert errors[-1] < 0.02
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.15)


# the targets


@pytest.fixture
def objective(family: GaussianFamily) -> Iterator[Any]:
    made: list[Objective] = []

    def build(**settings: Any) -> Objective:
        loss = {"feature_weight": 0.0} | settings.pop("loss", {})
        validated = DistillSettings.model_validate({"batch_size": 4, "loss": loss, **settings})
        made.append(Objective(family, validated, Accelerator(cpu=True), ()))
        return made[-1]

    yield build
    for each in made:
        each.close()


def sample_at(family: GaussianFamily, timesteps: Tensor, **changes: Any) -> Sample:
    x_t, replaced = states(len(timesteps)), torch.zeros(len(timesteps), dtype=torch.bool)
    return Sample(x_t, timesteps, PROMPTS[: len(timesteps)], replaced, x_t, x_t, **changes)


def target_of(objective: Objective, sample: Sample) -> Tensor:
    """Return the prediction that the student must match, `[B, C, h, w]`."""
    return objective.compare(lambda x_t, *_: (x_t, []), sample).teacher


def some_timesteps(family: GaussianFamily) -> Tensor:
    return family.noise.timesteps(torch.tensor([0.95, 0.6, 0.3, 0.1], dtype=torch.float64))


def test_the_target_without_guidance_is_the_ideal_prediction(
    family: GaussianFamily, ideal: GaussianDenoiser, objective: Any
) -> None:
    sample = sample_at(family, some_timesteps(family))
    expected = ideal(sample.x_t, sample.timesteps, gaussian.means_of(PROMPTS))
    torch.testing.assert_close(target_of(objective(), sample), expected)


def test_the_guidance_distilled_target_is_the_ideal_prediction_of_the_guided_mean(
    family: GaussianFamily, ideal: GaussianDenoiser, objective: Any
) -> None:
    sample = sample_at(family, some_timesteps(family))
    expected = ideal(sample.x_t, sample.timesteps, gaussian.guided_means(PROMPTS, 3.0))
    torch.testing.assert_close(target_of(objective(guidance_distillation=3.0), sample), expected)


def test_with_a_range_of_scales_every_target_has_its_own_guided_mean(
    family: GaussianFamily, ideal: GaussianDenoiser, objective: Any
) -> None:
    scales = torch.tensor([2.0, 8.0, 3.5, 7.25], dtype=torch.float64)
    sample = sample_at(family, some_timesteps(family), guidance_scale=scales)
    expected = ideal(sample.x_t, sample.timesteps, gaussian.guided_means(PROMPTS, scales[:, None]))
    torch.testing.assert_close(target_of(objective(guidance_distillation=[2, 8]), sample), expected)


@pytest.mark.parametrize("guidance_scale", [None, 3.0])
@pytest.mark.parametrize("teacher_steps", [1, 2, 5])
def test_one_step_to_the_progressive_target_is_the_composition_of_the_teachers_steps(
    family: GaussianFamily, ideal: GaussianDenoiser, objective: Any, teacher_steps: int, guidance_scale: float | None
) -> None:
    few = {"num_inference_steps": 4, "teacher_steps": teacher_steps}
    of = objective(few_steps=few, guidance_distillation=guidance_scale)
    timesteps = family.noise.solver_timesteps(4)
    sample, end = sample_at(family, timesteps), SolverGrid(family.noise, 4).below(timesteps)
    landed = family.noise.step(target_of(of, sample), sample.x_t, timesteps, end)

    means = gaussian.guided_means(PROMPTS, 1.0 if guidance_scale is None else guidance_scale)
    x, start = sample.x_t, timesteps
    for k in range(1, teacher_steps + 1):
        after = end if k == teacher_steps else family.noise.between(timesteps, end, k, teacher_steps)
        x = solver_step(ideal, x, start, after, means)
        start = after
    torch.testing.assert_close(landed, x, rtol=1e-4, atol=1e-5)


def test_with_many_teacher_steps_one_step_to_the_progressive_target_solves_the_ode(
    family: GaussianFamily, ideal: GaussianDenoiser, objective: Any
) -> None:
    timesteps = family.noise.solver_timesteps(4)
    sample, end = sample_at(family, timesteps), SolverGrid(family.noise, 4).below(timesteps)
    exact = ideal.flow_map(sample.x_t, timesteps, end, gaussian.means_of(PROMPTS))
    errors = []
    for teacher_steps in (25, 50, 100):
        few = {"num_inference_steps": 4, "teacher_steps": teacher_steps}
        landed = family.noise.step(target_of(objective(few_steps=few), sample), sample.x_t, timesteps, end)
        errors.append((landed - exact).square().mean().sqrt().item())
    assert errors[-1] < 0.01
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.15)


# the losses


def spaces(kind: str, alpha_bar: Tensor, error: Tensor) -> dict[str, Tensor]:
    """Return an error `[B, ...]` of a prediction as errors of epsilon, x_0 and v at the same x_t, by definition."""
    a = alpha_bar.view(-1, 1, 1, 1)
    if kind == "epsilon":
        epsilon = error
    elif kind == "v_prediction":  # epsilon = sqrt(a) v + sqrt(1 - a) x_t
        epsilon = a.sqrt() * error
    else:  # epsilon = x_t + (1 - s) flow, with s / (1 - s) = sqrt((1 - a) / a)
        epsilon = error / (1 + ((1 - a) / a).sqrt())
    x_0 = -((1 - a) / a).sqrt() * epsilon  # x_t is a multiple of sqrt(a) x_0 + sqrt(1 - a) epsilon
    v = a.sqrt() * epsilon - (1 - a).sqrt() * x_0
    return {"epsilon": epsilon, "x0": x_0, "v": v}


@pytest.mark.parametrize("weighting", ["native", "epsilon", "x0", "v", "min_snr"])
def test_an_output_weight_turns_an_error_of_the_prediction_into_that_of_its_space(
    family: GaussianFamily, weighting: Any
) -> None:
    alpha_bar = family.noise.alpha_bar(some_timesteps(family)).double()
    kind, error = family.noise.prediction_type, states(4)
    weight = rc.output_weight(weighting, alpha_bar, prediction_type=kind, clip=(0.0, 1e9), gamma=5.0)
    errors = {"native": error, **spaces(kind, alpha_bar, error)}
    snr = alpha_bar / (1 - alpha_bar)
    factor = snr.clamp(max=5.0) if weighting == "min_snr" else torch.ones_like(snr)
    expected = factor * errors["x0" if weighting == "min_snr" else weighting].square().flatten(1).mean(1)
    torch.testing.assert_close(weight * error.square().flatten(1).mean(1), expected, rtol=1e-6, atol=0)


def test_the_task_loss_of_the_ideal_denoiser_is_the_variance_of_the_target_given_the_state(
    family: GaussianFamily, ideal: GaussianDenoiser, objective: Any
) -> None:
    count, timesteps = 5000, some_timesteps(family)
    prompts = [prompt for prompt in PROMPTS for _ in range(count)]
    x_0 = gaussian.sample_latents(prompts, torch.Generator().manual_seed(2))
    noise, timesteps = states(len(prompts), seed=3), timesteps.repeat_interleave(count)
    x_t = family.noise.add_noise(x_0, noise, timesteps)
    replaced = torch.arange(len(prompts)) % 2 == 0
    of = objective(loss={"task_weight": 1.0})
    comparison = of.compare(
        lambda x_t, timesteps, condition: (family.predict(ideal, x_t, timesteps, condition), []),
        Sample(x_t, timesteps, prompts, replaced, x_0, noise),
    )
    losses = of.losses(comparison)
    assert not losses.terms["output"].any()
    assert not losses.terms["task"][replaced].any()
    means = losses.terms["task"][~replaced].view(4, -1).double().mean(1)
    torch.testing.assert_close(means, ideal.residual_variance(timesteps[::count]), rtol=0.05, atol=0)
