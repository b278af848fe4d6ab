from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn
from training import (
    PROMPTS,
    Fixed,
    losses,
    sample_at,
)

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings
from condistill.students.derive import derive_student
from condistill.students.guidance import with_guidance
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family


def guided(family: Family, x_t: Tensor, timesteps: Tensor, prompts: list[str], scale: float) -> Tensor:
    with torch.no_grad():
        with_prompt = family.predict(family.denoiser, x_t, timesteps, family.encode(prompts))
        null = family.predict(family.denoiser, x_t, timesteps, family.encode([""] * len(prompts)))
    return null + scale * (with_prompt - null)


# guidance distillation


def test_the_target_of_guidance_distillation_is_the_guided_teacher(objective: Any, tiny_family: Family) -> None:
    sample = sample_at([999, 500, 20, 0])
    target = guided(tiny_family, sample.x_t, sample.timesteps, sample.prompts, 3.0)
    of = objective(guidance_distillation=3.0)
    comparison = of.compare(Fixed(target), sample)
    torch.testing.assert_close(comparison.teacher, target, rtol=1e-4, atol=1e-5)
    assert of.losses(comparison).total.max() < 1e-9
    plain = losses(objective(), Fixed(target), sample).total
    assert plain[0] > 1e-4
    assert plain[1] < 1e-9  # guidance does not change the empty prompt


class Converged(nn.Module):
    """The limit of a guidance-distilled student: its teacher, guided, in one evaluation."""

    def __init__(self, family: Family, scale: float) -> None:
        super().__init__()
        self.teacher, self.scale = family.denoiser, scale
        self.null = family.encode([""]).tensors["prompt_embeds"]
        self.config = SimpleNamespace(**{**dict(family.denoiser.config), "time_cond_proj_dim": 256})
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.batch_sizes: list[int] = []

    def forward(self, x_t: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        self.batch_sizes.append(len(x_t))
        null = self.null.expand_as(encoder_hidden_states)
        with_prompt, without = (
            self.teacher(x_t, timestep, encoder_hidden_states=e).sample for e in (encoder_hidden_states, null)
        )
        return (without + self.scale * (with_prompt - without),)


def test_a_converged_guidance_distilled_student_samples_as_its_teacher_with_half_the_evaluations(
    tiny_family: Family,
) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    options = {"num_inference_steps": 4, "guidance_scale": 3.0}
    expected = tiny_family.sample(tiny_family.denoiser, PROMPTS[:2], noise, **options)
    student = Converged(tiny_family, 3.0)
    latents = tiny_family.sample(student, PROMPTS[:2], noise, **options)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    assert student.batch_sizes == [2] * 4


def test_the_target_of_every_sample_has_the_guidance_scale_of_that_sample(objective: Any, tiny_family: Family) -> None:
    scales = [2.0, 7.5, 3.25, 8.0]
    sample = sample_at([999, 500, 20, 700])
    scaled = replace(sample, guidance_scale=torch.tensor(scales, dtype=torch.float64))
    predictions = objective(guidance_distillation=[2, 8]).compare(Fixed(sample.x_t), scaled)
    for i, scale in enumerate(scales):
        rows = slice(i, i + 1)
        expected = guided(tiny_family, sample.x_t[rows], sample.timesteps[rows], sample.prompts[rows], scale)
        torch.testing.assert_close(predictions.teacher[rows], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_teacher_with_embedded_guidance_gets_the_scale_of_the_student_and_runs_once(
    objective: Any, tiny_family: Family
) -> None:
    settings = DistillSettings.model_validate({"guidance_distillation": [2, 8]})
    student = derive_student(tiny_family.denoiser, StudentSettings(width=1.0), may_be_as_large=True)
    teacher: Any = with_guidance(student, tiny_family.denoiser, settings).denoiser
    nn.init.normal_(teacher.time_embedding.cond_proj.weight)
    sample = replace(sample_at([999, 500]), guidance_scale=torch.tensor([2.0, 8.0], dtype=torch.float64))
    assert sample.guidance_scale is not None
    condition = tiny_family.encode(sample.prompts).with_guidance_scale(sample.guidance_scale)
    sizes: list[int] = []
    teacher.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with tiny_family.using(teacher), torch.no_grad():
        predictions = objective(guidance_distillation=[2, 8]).compare(Fixed(sample.x_t), sample)
        expected = tiny_family.predict(teacher, sample.x_t, sample.timesteps, condition)
    torch.testing.assert_close(predictions.teacher, expected)
    assert sizes == [2, 2]


# fewer steps


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_step_with_the_progressive_target_ends_where_the_steps_of_the_teacher_end(
    objective: Any, tiny_family: Family, count: int
) -> None:
    sample = sample_at([999, 749, 499, 249])
    few = {"num_inference_steps": 4, "teacher_steps": count}
    predictions = objective(few_steps=few, guidance_distillation=2.0).compare(Fixed(sample.x_t), sample)
    scheduler = DDIMScheduler.from_config(tiny_family.pipeline.scheduler.config)
    for i, start in enumerate(sample.timesteps.tolist()):
        end = start - 250
        visited = [start + (end - start) * k // count for k in range(count + 1)]
        x = sample.x_t[i : i + 1]
        for here, follows in pairwise(visited):
            prediction = guided(tiny_family, x, torch.tensor([here]), [sample.prompts[i]], 2.0)
            x = ddim(scheduler, prediction, x, here, follows)
        landed = ddim(scheduler, predictions.teacher[i : i + 1], sample.x_t[i : i + 1], start, end)
        torch.testing.assert_close(landed, x, rtol=1e-3, atol=1e-3)


def ddim(scheduler: DDIMScheduler, prediction: Tensor, x_t: Tensor, here: int, follows: int) -> Tensor:
    """Return the latents after a DDIM step, in float64, by way of the predicted x_0."""
    alphas = scheduler.alphas_cumprod.double()
    a, a_next = alphas[here], alphas[follows] if follows >= 0 else scheduler.final_alpha_cumprod.double()
    x_0 = (x_t.double() - (1 - a).sqrt() * prediction) / a.sqrt()
    return (a_next.sqrt() * x_0 + (1 - a_next).sqrt() * prediction).float()


def test_a_progressive_target_costs_one_forward_per_step_of_the_teacher(
    objective: Any, tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []
    predict = tiny_family.predict

    def count(denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        calls.append(timesteps.tolist())
        return predict(denoiser, x_t, timesteps, condition)

    monkeypatch.setattr(tiny_family, "predict", count)
    of = objective(few_steps={"num_inference_steps": 4, "teacher_steps": 2})
    of.compare(Fixed(torch.zeros(2, 4, 8, 8)), sample_at([999, 249]))
    assert calls == [[999, 249], [874, 124]]


# consistency


CONSISTENCY = {"method": "consistency", "num_inference_steps": 4, "solver_steps": 20}


class Function:
    """A student whose prediction is a function of (x_t, timesteps), and which keeps the timesteps of its calls."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function
        self.calls: list[tuple[list[int], bool]] = []

    def __call__(self, x_t: Tensor, timesteps: Tensor, _: Condition) -> tuple[Tensor, list[Tensor]]:
        self.calls.append((timesteps.tolist(), torch.is_grad_enabled()))
        return self.function(x_t, timesteps), []


def wave(x_t: Tensor, timesteps: Tensor) -> Tensor:
    return torch.sin(3 * x_t) + (timesteps / 1000).view(-1, 1, 1, 1)


def test_the_consistency_target_has_the_end_that_the_student_sees_after_one_guided_step(
    objective: Any, tiny_family: Family
) -> None:
    sample = sample_at([999, 549, 99, 49])
    student = Function(wave)
    predictions = objective(few_steps=CONSISTENCY, guidance_distillation=2.0).compare(student, sample)
    assert student.calls == [([949, 499, 49, 0], False), ([999, 549, 99, 49], True)]
    ddim_scheduler = DDIMScheduler.from_config(tiny_family.pipeline.scheduler.config)
    lcm = LCMScheduler.from_config(tiny_family.pipeline.scheduler.config, original_inference_steps=20)

    def end(prediction: Tensor, t: int, x: Tensor) -> Tensor:
        lcm.set_timesteps(20)
        return lcm.step(prediction, t, x, generator=torch.Generator()).denoised

    for i, t in enumerate(sample.timesteps.tolist()):
        x_t, follows = sample.x_t[i : i + 1], t - 50
        prediction = guided(tiny_family, x_t, torch.tensor([t]), [sample.prompts[i]], 2.0)
        x_next = ddim(ddim_scheduler, prediction, x_t, t, follows)
        expected = end(wave(x_next, torch.tensor([follows])), follows, x_next) if follows > 0 else x_next
        ends = end(predictions.teacher[i : i + 1], t, x_t)
        torch.testing.assert_close(ends, expected, rtol=1e-3, atol=1e-3)


def test_a_student_that_knows_the_end_of_every_path_has_no_loss(
    objective: Any, tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # if all data is one latent, the noise in x_t is constant along a path, and the end of the path is known
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    scheduler = DDIMScheduler.from_config(tiny_family.pipeline.scheduler.config)

    def noise_in(x_t: Tensor, timesteps: Tensor) -> Tensor:
        a = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (x_t - a.sqrt() * latent) / (1 - a).sqrt()

    def knows(x_t: Tensor, timesteps: Tensor) -> Tensor:
        a = scheduler.final_alpha_cumprod
        end = a.sqrt() * latent + (1 - a).sqrt() * noise_in(x_t, timesteps)
        return tiny_family.noise.consistent_prediction(end, x_t, timesteps.clamp(min=1))

    monkeypatch.setattr(tiny_family, "predict", lambda _denoiser, x_t, timesteps, _c: noise_in(x_t, timesteps))
    noise = sample_at([999, 499, 99, 49])
    a = scheduler.alphas_cumprod[noise.timesteps].view(-1, 1, 1, 1)
    sample = replace(noise, x_t=a.sqrt() * latent + (1 - a).sqrt() * noise.noise)
    consistency = {"few_steps": CONSISTENCY, "guidance_distillation": 2.0}
    assert losses(objective(**consistency), Function(knows), sample).total.max() < 1e-6
    assert losses(objective(**consistency), Function(wave), sample).total.min() > 1e-2
