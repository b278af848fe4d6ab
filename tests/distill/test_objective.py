from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings
from condistill.config.yaml_tree import merge
from condistill.distill import random_conditioning as rc
from condistill.distill.batches import Blend
from condistill.distill.objective import Losses, Objective
from condistill.distill.states import Sample
from condistill.students.derive import derive_student
from condistill.students.guidance import with_guidance
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family

PROMPTS = ["a red ball", "", "a blue box", "a star"]


def sample_at(timesteps: list[int]) -> Sample:
    noise = torch.randn(len(timesteps), 4, 8, 8, generator=torch.Generator().manual_seed(3))
    replaced = torch.zeros(len(timesteps), dtype=torch.bool)
    return Sample(noise, torch.tensor(timesteps), PROMPTS[: len(timesteps)], replaced, noise, noise)


@pytest.fixture
def objective(tiny_family: Family) -> Iterator[Any]:
    made: list[Objective] = []

    def build(**settings: Any) -> Objective:
        of = DistillSettings.model_validate(merge({"batch_size": 4, "loss": {"feature_weight": 0.0}}, settings))
        made.append(Objective(tiny_family, of, Accelerator(cpu=True), []))
        return made[-1]

    yield build
    for each in made:
        each.close()


class Says:
    """A student that predicts what it is told to."""

    def __init__(self, prediction: Tensor) -> None:
        self.prediction = prediction

    def __call__(self, *_: Any) -> tuple[Tensor, list[Tensor]]:
        return self.prediction, []


def losses(objective: Objective, model: Any, sample: Sample) -> Losses:
    return objective.losses(objective.compare(model, sample))


def guided(family: Family, x_t: Tensor, timesteps: Tensor, prompts: list[str], scale: float) -> Tensor:
    with torch.no_grad():
        with_prompt = family.predict(family.denoiser, x_t, timesteps, family.encode(prompts))
        null = family.predict(family.denoiser, x_t, timesteps, family.encode([""] * len(prompts)))
    return null + scale * (with_prompt - null)


# blends of two prompts


def test_both_models_are_told_the_blend_of_two_prompts(objective: Any, tiny_family: Family) -> None:
    partners, weight = ["a red box", "a star", "a ball", "a dog"], [0.25, 0.0, 0.9, 0.0]
    sample = replace(sample_at([999, 500, 20, 0]), blend=Blend(partners, torch.tensor(weight, dtype=torch.float64)))
    told: list[Condition] = []

    def student(x_t: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        told.append(condition)
        return tiny_family.predict(tiny_family.denoiser, x_t, timesteps, condition), []

    found = losses(objective(), student, sample)
    first, second = (tiny_family.encode(p).tensors["prompt_embeds"] for p in (PROMPTS, partners))
    given = told[0].tensors["prompt_embeds"]
    for i, a in enumerate(weight):
        torch.testing.assert_close(given[i], (1 - a) * first[i] + a * second[i])
    assert torch.equal(given[1], first[1])
    assert torch.equal(given[3], first[3])
    assert not found.terms["output"].any()  # the teacher was told the same


# guidance folded in


def test_the_folded_target_is_the_guided_teacher(objective: Any, tiny_family: Family) -> None:
    sample = sample_at([999, 500, 20, 0])
    target = guided(tiny_family, sample.x_t, sample.timesteps, sample.prompts, 3.0)
    of = objective(guidance_distillation=3.0)
    comparison = of.compare(Says(target), sample)
    torch.testing.assert_close(comparison.teacher, target, rtol=1e-4, atol=1e-5)
    assert of.losses(comparison).total.max() < 1e-9
    plain = losses(objective(), Says(target), sample).total
    assert plain[0] > 1e-4
    assert plain[1] < 1e-9  # the empty prompt, which guidance leaves alone


class Converged(nn.Module):
    """What a student with folded guidance is in the limit: its teacher, guided, in one call."""

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


def test_a_converged_folded_student_draws_what_the_guided_teacher_draws_in_half_the_calls(tiny_family: Family) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    how = {"num_inference_steps": 4, "guidance_scale": 3.0}
    expected = tiny_family.sample(tiny_family.denoiser, PROMPTS[:2], noise, **how)
    student = Converged(tiny_family, 3.0)
    given = tiny_family.sample(student, PROMPTS[:2], noise, **how)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert student.batch_sizes == [2] * 4


def test_every_sample_has_the_target_of_its_own_guidance_scale(objective: Any, tiny_family: Family) -> None:
    scales = [2.0, 7.5, 3.25, 8.0]
    sample = sample_at([999, 500, 20, 700])
    told = replace(sample, guidance_scale=torch.tensor(scales, dtype=torch.float64))
    predictions = objective(guidance_distillation=[2, 8]).compare(Says(sample.x_t), told)
    for i, scale in enumerate(scales):
        rows = slice(i, i + 1)
        expected = guided(tiny_family, sample.x_t[rows], sample.timesteps[rows], sample.prompts[rows], scale)
        torch.testing.assert_close(predictions.teacher[rows], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_teacher_that_is_told_its_scale_is_told_the_students_and_asked_once(
    objective: Any, tiny_family: Family
) -> None:
    settings = DistillSettings.model_validate({"guidance_distillation": [2, 8]})
    made = derive_student(tiny_family.denoiser, StudentSettings(width=1.0), may_be_as_large=True)
    teacher: Any = with_guidance(made, tiny_family.denoiser, settings).denoiser
    nn.init.normal_(teacher.time_embedding.cond_proj.weight)
    sample = replace(sample_at([999, 500]), guidance_scale=torch.tensor([2.0, 8.0], dtype=torch.float64))
    assert sample.guidance_scale is not None
    condition = tiny_family.encode(sample.prompts).with_guidance_scale(sample.guidance_scale)
    sizes: list[int] = []
    teacher.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with tiny_family.using(teacher), torch.no_grad():
        predictions = objective(guidance_distillation=[2, 8]).compare(Says(sample.x_t), sample)
        expected = tiny_family.predict(teacher, sample.x_t, sample.timesteps, condition)
    torch.testing.assert_close(predictions.teacher, expected)
    assert sizes == [2, 2]


# fewer steps


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_step_to_the_few_step_target_lands_where_the_teachers_steps_land(
    objective: Any, tiny_family: Family, count: int
) -> None:
    sample = sample_at([999, 749, 499, 249])
    few = {"num_inference_steps": 4, "teacher_steps": count}
    predictions = objective(few_steps=few, guidance_distillation=2.0).compare(Says(sample.x_t), sample)
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
    """A DDIM step in float64, by way of the predicted x_0."""
    alphas = scheduler.alphas_cumprod.double()
    a, a_next = alphas[here], alphas[follows] if follows >= 0 else scheduler.final_alpha_cumprod.double()
    x_0 = (x_t.double() - (1 - a).sqrt() * prediction) / a.sqrt()
    return (a_next.sqrt() * x_0 + (1 - a_next).sqrt() * prediction).float()


def test_a_few_step_target_costs_a_forward_for_each_of_the_teachers_steps(
    objective: Any, tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    predict = tiny_family.predict

    def count(denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        asked.append(timesteps.tolist())
        return predict(denoiser, x_t, timesteps, condition)

    monkeypatch.setattr(tiny_family, "predict", count)
    of = objective(few_steps={"num_inference_steps": 4, "teacher_steps": 2})
    of.compare(Says(torch.zeros(2, 4, 8, 8)), sample_at([999, 249]))
    assert asked == [[999, 249], [874, 124]]


def test_weights_of_the_output_apply_to_the_few_step_target_as_well(objective: Any) -> None:
    sample = sample_at([999, 249])
    few = {"num_inference_steps": 4}
    of = objective(few_steps=few, loss={"output_weighting": "x0"})
    predictions = of.compare(Says(torch.zeros(2, 4, 8, 8)), sample)
    found = of.losses(predictions)
    output = found.terms["output"]
    assert found.total[0] > output[0] * 9  # (1 - a) / a is clipped to 10 where there is only noise
    torch.testing.assert_close(output, rc.mse(torch.zeros_like(predictions.teacher), predictions.teacher))


# consistency


CONSISTENCY = {"method": "consistency", "num_inference_steps": 4, "solver_steps": 20}


class Answers:
    """A student that answers with a function of (x_t, timesteps), and remembers where it was asked."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function
        self.asked: list[tuple[list[int], bool]] = []

    def __call__(self, x_t: Tensor, timesteps: Tensor, _: Condition) -> tuple[Tensor, list[Tensor]]:
        self.asked.append((timesteps.tolist(), torch.is_grad_enabled()))
        return self.function(x_t, timesteps), []


def wave(x_t: Tensor, timesteps: Tensor) -> Tensor:
    return torch.sin(3 * x_t) + (timesteps / 1000).view(-1, 1, 1, 1)


def test_the_consistent_target_sees_the_end_that_the_student_sees_one_guided_step_on(
    objective: Any, tiny_family: Family
) -> None:
    sample = sample_at([999, 549, 99, 49])
    student = Answers(wave)
    predictions = objective(few_steps=CONSISTENCY, guidance_distillation=2.0).compare(student, sample)
    assert student.asked == [([949, 499, 49, 0], False), ([999, 549, 99, 49], True)]
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
        given = end(predictions.teacher[i : i + 1], t, x_t)
        torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


def test_a_student_that_knows_the_end_of_every_path_has_no_loss(
    objective: Any, tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # where all data is one latent the noise in x_t stays the same along a path, and the end of the path is known
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
    assert losses(objective(**consistency), Answers(knows), sample).total.max() < 1e-6
    assert losses(objective(**consistency), Answers(wave), sample).total.min() > 1e-2
