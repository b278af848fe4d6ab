"""What all teachers of flow matching promise, each against diffusers' own scheduler and call."""

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
from condistill.teachers.noise.grid import END, SolverGrid

PROMPTS = ["a large red star at the top on snow", ""]
KINDS = ("sd3", "sd3_dynamic", "flux_dev", "flux_schnell")


def build(kind: str, **changes: Any) -> Family:
    if kind == "sd3":
        return StableDiffusion3(build_sd3(**changes))
    if kind == "sd3_dynamic":
        return StableDiffusion3(build_sd3(scheduler={"use_dynamic_shifting": True, "time_shift_type": "linear"}))
    return Flux(build_flux(guidance_embeds=kind == "flux_dev", **changes), resolution=64)


@pytest.fixture(scope="module")
def families() -> dict[str, Family]:
    return {kind: build(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    return families[request.param]


def latents(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def drawn_with(pipeline: Any, steps: int, prompt: str = "", noise: Tensor | None = None, **asked: Any) -> Any:
    """The timesteps and the states that a pipeline's own call visits."""
    timesteps, states = [], []

    def keep(_pipeline: Any, _step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        timesteps.append(float(timestep))
        states.append(tensors["latents"].clone())
        return tensors

    size = {"height": 64, "width": 64, "output_type": "latent"}
    pipeline(prompt, num_inference_steps=steps, latents=noise, callback_on_step_end=keep, **size, **asked)
    return timesteps, states


def visited_by(family: Family, steps: int) -> FlowMatchEulerDiscreteScheduler:
    """The pipeline's scheduler, as its own call has left it."""
    with torch.no_grad():
        drawn_with(family.pipeline, steps)
    return family.pipeline.scheduler


# noise


def test_noise_is_added_as_the_scheduler_adds_it(family: Family) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(family.pipeline.scheduler.config)
    timesteps = scheduler.timesteps[[100, 900]]  # those of its training
    expected = scheduler.scale_noise(latents(0), timesteps, latents(1))
    torch.testing.assert_close(family.noise.add_noise(latents(0), latents(1), timesteps), expected)


def test_the_noise_level_is_sigma(family: Family) -> None:
    scheduler = visited_by(family, 7)
    torch.testing.assert_close(family.noise.noise_level(scheduler.timesteps), scheduler.sigmas[:-1])
    assert family.noise.noise_level(scheduler.timesteps)[0] == 1


def test_the_signal_share_gives_the_flows_signal_to_noise_ratio(family: Family) -> None:
    sigma = torch.tensor([0.05, 0.5, 0.97], dtype=torch.float64)
    share = family.noise.alpha_bar(family.noise.total_timesteps * sigma).double()
    torch.testing.assert_close(share / (1 - share), ((1 - sigma) / sigma) ** 2, rtol=1e-4, atol=0)


def test_a_flow_teacher_is_right_where_it_finds_the_way_from_image_to_noise(family: Family) -> None:
    timesteps = torch.tensor([250.0, 800.0])
    x_0, noise = latents(0), latents(1)
    prediction = family.noise.target(x_0, noise, timesteps)
    end = family.noise.step(
        prediction, family.noise.add_noise(x_0, noise, timesteps), timesteps, torch.full((2,), float(END))
    )
    torch.testing.assert_close(end, x_0)
    assert family.noise.prediction_type == "flow"


def test_training_timesteps_are_spread_as_the_scheduler_shifts_them(family: Family) -> None:
    spread = torch.linspace(1, 0.001, 50, dtype=torch.float64)
    scheduler = visited_by(family, 2)
    mu = None
    if scheduler.config.use_dynamic_shifting:  # 16 tokens
        mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)
    scheduler.set_timesteps(sigmas=spread.tolist(), mu=mu)
    given = family.noise.timesteps((spread - 0.001) / 0.999)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, scheduler.timesteps, rtol=1e-5, atol=1e-3)


def test_no_training_timestep_is_without_noise_or_beyond_it(family: Family) -> None:
    ends = family.noise.timesteps(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert 0 < ends[0] < 10
    assert 999 < ends[1] <= 1000


# steps


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_solver_visits_the_timesteps_of_the_pipelines_own_call(family: Family, steps: int) -> None:
    timesteps, _ = drawn_with(family.pipeline, steps)
    given = family.noise.solver_timesteps(steps)
    assert given.dtype == torch.float32
    assert given.tolist() == timesteps
    assert given[0] == family.noise.total_timesteps


def test_a_step_is_the_schedulers(family: Family) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(family.pipeline.scheduler.config)
    prediction, x_t = latents(1), latents(2)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.1], mu=1.0)
    for timestep, follows in pairwise([*scheduler.timesteps, torch.tensor(float(END))]):
        expected = scheduler.step(prediction, timestep, x_t).prev_sample
        now, after = timestep.expand(2), follows.expand(2)
        given = family.noise.step(prediction, x_t, now, after)
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            family.noise.implied_prediction(given, x_t, now, after), prediction, rtol=1e-3, atol=1e-3
        )


def test_parts_of_a_step_are_equal_and_end_at_the_finished_latent(family: Family) -> None:
    here, end = torch.tensor([1000.0, 300.0]), torch.tensor([500.0, float(END)])
    parts = torch.stack([family.noise.between(here, end, part, 3) for part in range(4)])
    torch.testing.assert_close(parts.diff(dim=0), torch.tensor([[-500.0, -300.0]] * 3) / 3)
    torch.testing.assert_close(parts[-1], torch.tensor([500.0, 0.0]))


def test_a_grid_of_fractions_of_timesteps_is_walked_to_its_end(families: dict[str, Family]) -> None:
    family = families["flux_dev"]
    grid, timesteps = SolverGrid(family.noise, 5), family.noise.solver_timesteps(5)
    assert grid.below(timesteps).tolist() == [*timesteps[1:].tolist(), END]
    assert grid.below(timesteps - 1e-3).tolist() == [*timesteps[1:].tolist(), END]
    assert grid.below(torch.tensor([999.0])).item() == timesteps[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_a_student_of_few_steps_visits_what_it_was_trained_at_in_plain_diffusers(
    kind: str, scheduler: Any, families: dict[str, Family], tmp_path: Path
) -> None:
    """Also where the teacher draws by another solver, or with noise added on the way."""
    pipeline = families[kind].pipeline.__class__(**families[kind].pipeline.components)
    settings = {"stochastic_sampling": True} if scheduler is FlowMatchEulerDiscreteScheduler else {}
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **settings)
    family: Family = type(families[kind])(pipeline, resolution=64)
    save_pipeline(family, family.denoiser, tmp_path / "student", card="", scheduler=family.noise.solver)
    student = DiffusionPipeline.from_pretrained(tmp_path / "student", use_safetensors=True)
    student.set_progress_bar_config(disable=True)
    noise = family.pack_latents(latents(0, 1))
    timesteps, states = drawn_with(student, 4, noise=noise)
    assert (
        timesteps == family.noise.solver_timesteps(4).tolist() == SolverGrid(family.noise, 4)._rising.flip(0).tolist()
    )
    _, again = drawn_with(student, 4, noise=noise)
    assert torch.equal(states[-1], again[-1])


def test_a_student_of_few_steps_learns_where_several_of_the_teachers_lead(
    families: dict[str, Family], tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    family = families["sd3"]
    settings = DistillSettings(batch_size=3, few_steps={"num_inference_steps": 3, "teacher_steps": 2})
    check_steps(family, settings)
    objective = Objective(family, settings, Accelerator(cpu=True), ())
    twin = Student(family.denoiser, (), kept=(), maps=nn.ModuleList())  # type: ignore[arg-type]
    here = family.noise.solver_timesteps(3)
    x_t, zero = latents(5, 3), torch.zeros(3, dtype=torch.bool)
    prompts = ["a small red star", "", "a large blue box"]
    sample = Sample(x_t, here, prompts, zero, x_t, x_t)
    with torch.no_grad():
        predictions = objective.compare(StudentForward(family, twin, features=None), sample)
        end = torch.cat([here[1:], torch.zeros(1)])
        middle = (here + end) / 2
        condition = family.encode(prompts)
        x = x_t + ((middle - here) / 1000).view(-1, 1, 1, 1) * family.predict(family.denoiser, x_t, here, condition)
        x = x + ((end - middle) / 1000).view(-1, 1, 1, 1) * family.predict(family.denoiser, x, middle, condition)
    moved = family.noise.step(predictions.teacher, x_t, here, torch.cat([here[1:], torch.tensor([float(END)])]))
    torch.testing.assert_close(moved, x, rtol=1e-4, atol=1e-4)


def test_a_flow_is_no_consistency_models_teacher(family: Family) -> None:
    settings = DistillSettings(few_steps={"method": "consistency", "num_inference_steps": 2, "solver_steps": 10})
    with pytest.raises(CondistillError, match=re.escape("set few_steps.method: progressive")):
        check_steps(family, settings)


# paths


@pytest.mark.parametrize("kind", ["sd3", "flux_dev"])
def test_a_rolling_state_visits_what_the_pipelines_own_solver_visits(
    kind: str, families: dict[str, Family], tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    family, steps, rows, conditioning = families[kind], 4, slice(0, 2), RandomConditioning()
    told = (2.0, 6.0) if kind == "flux_dev" else None
    source = BatchSource(tiny_cache, tiny_pool, 5, 2, 2, guidance_range=told)
    path = {"start": "noise", "num_inference_steps": steps}
    settings = DistillSettings.model_validate({"path": path, "guidance_distillation": told})
    of_source = {"positions": source.positions, "student": family.denoiser, "accelerator": Accelerator(cpu=True)}
    paths = Paths(family, settings, conditioning, **of_source)
    visits: list[Sample] = []
    for step in range(2 * steps):
        batch = source(step)[0]
        sample = paths.place(step, rows, noised_latents(family, conditioning, batch), batch)
        condition = family.encode(sample.prompts)
        if sample.guidance_scale is not None:
            condition = condition.with_guidance_scale(sample.guidance_scale)
        with torch.no_grad():
            prediction = family.predict(family.denoiser, sample.x_t, sample.timesteps, condition)
        paths.advance(Comparison(sample, family.noise, LossSettings(), teacher=prediction, student=prediction))
        visits.append(sample)
    begun = [step for step in range(1, steps + 1) if visits[step].timesteps[0] == family.noise.total_timesteps]
    walked = visits[begun[0] : begun[0] + steps]
    scale = 1.0 if walked[0].guidance_scale is None else walked[0].guidance_scale[0].item()
    noise = family.pack_latents(walked[0].x_t[:1])
    timesteps, states = drawn_with(family.pipeline, steps, walked[0].prompts[0], noise, guidance_scale=scale)
    assert [sample.timesteps[0].item() for sample in walked] == timesteps
    for sample, state in zip(walked[1:], states, strict=False):
        torch.testing.assert_close(sample.x_t[:1], family.unpack_latents(state), rtol=1e-4, atol=1e-4)


# schedulers


@pytest.mark.parametrize("scheduler", [DDIMScheduler, FlowMatchLCMScheduler])
def test_a_teacher_with_a_scheduler_of_no_flow_is_refused(scheduler: Any, families: dict[str, Family]) -> None:
    components = {**families["sd3"].pipeline.components, "scheduler": scheduler()}
    with pytest.raises(
        CondistillError, match=rf"a {scheduler.__name__}, is not set to flow matching; family stable_diffusion_3"
    ):
        StableDiffusion3(families["sd3"].pipeline.__class__(**components))


def test_another_schedulers_flow_keeps_its_shift(families: dict[str, Family]) -> None:
    pipeline = families["sd3"].pipeline
    other = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    family = StableDiffusion3(pipeline.__class__(**{**pipeline.components, "scheduler": other}))
    assert (
        "use_flow_sigmas" not in family.noise.solver.config
    )  # the pipelines of some flows do otherwise where they read it
    assert torch.equal(family.noise.solver_timesteps(5), families["sd3"].noise.solver_timesteps(5))
