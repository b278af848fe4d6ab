from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.config.distill import DistillSettings, LossSettings
from condistill.config.sections import StudentSettings
from condistill.distill import paths as paths_module
from condistill.distill.batches import BatchSource, Blend
from condistill.distill.loss_terms import Comparison
from condistill.distill.objective import Losses, Objective
from condistill.distill.paths import Paths, on_path
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.states import Sample, noised_latents
from condistill.distill.student import StudentForward
from condistill.prompts.pool import PromptPool
from condistill.students.derive import Student, derive_student
from condistill.students.features import feature_pairs, make_maps
from condistill.teachers.family import Family

SEED, STEPS, BATCH = 5, 5, 4
CONDITIONING = RandomConditioning()


def paths_of(
    family: Family, settings: DistillSettings, positions: Sequence[int], student: Any, accelerator: Any
) -> Paths:
    return Paths(family, settings, CONDITIONING, positions=positions, student=student, accelerator=accelerator)


@pytest.fixture(scope="module")
def twin(tiny_family: Family) -> Student:
    """A student that equals its teacher."""
    teacher = tiny_family.denoiser
    denoiser = copy.deepcopy(teacher)
    pairs = feature_pairs(teacher, denoiser)
    return Student(denoiser, pairs, kept=(), maps=make_maps([1] * len(pairs), [1] * len(pairs)))


@pytest.fixture(scope="module")
def narrow(tiny_family: Family) -> Student:
    return derive_student(tiny_family.denoiser, StudentSettings(width=0.5))


class Loop:
    """A trainer's walk along paths, without training."""

    def __init__(
        self, family: Family, student: Student, cache: LatentCache, pool: PromptPool, distill: Any = None, **path: Any
    ) -> None:
        base = {"steps": 100, "batch_size": BATCH, "path": path}
        self.settings = DistillSettings.model_validate({**base, **(distill or {})})
        self.family, accelerator = family, Accelerator(cpu=True)
        self.source = BatchSource(cache, pool, SEED, BATCH, BATCH, guidance_range=self.settings.guidance_range)
        self.objective = Objective(family, self.settings, accelerator, student.pairs)
        self.model = StudentForward(family.predict, student, features="stages").eval()
        self.paths = paths_of(family, self.settings, self.source.positions, self.model.denoiser, accelerator)

    def step(self, step: int) -> tuple[Sample, Losses]:
        sample = self.place(step)
        comparison = self.objective.compare(self.model, sample)
        self.paths.advance(comparison)
        return sample, self.objective.losses(comparison)

    def place(self, step: int) -> Sample:
        batch = self.source(step)[0]
        isolated = noised_latents(self.family, CONDITIONING, batch)
        return self.paths.place(step, slice(0, BATCH), isolated, batch)


@pytest.fixture
def loop(tiny_family: Family, tiny_cache: LatentCache, tiny_pool: PromptPool) -> Any:
    made: list[Loop] = []

    def build(student: Student, **settings: Any) -> Loop:
        made.append(Loop(tiny_family, student, tiny_cache, tiny_pool, **settings))
        return made[-1]

    yield build
    for each in made:
        each.objective.close()


def visited_by_the_pipeline(family: Family, denoiser: Any, prompt: str, noise: Tensor, guidance: float) -> list[Tensor]:
    """Return the states that the pipeline's own call and scheduler visit."""
    states = [noise]

    def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        states.append(tensors["latents"].clone())
        return tensors

    with family.using(denoiser) as pipeline:
        pipeline(
            prompt=prompt,
            latents=noise,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type="latent",
            callback_on_step_end=keep,
        )
    return states[:STEPS]  # the last one is the finished latent


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("follow", ["teacher", "student"])
@pytest.mark.slow
def test_a_rolling_state_visits_what_the_pipelines_own_solver_visits(
    loop: Any, narrow: Student, tiny_family: Family, follow: str, guidance: float
) -> None:
    walk = loop(narrow, start="noise", follow=follow, guidance_scale=guidance, num_inference_steps=STEPS)
    visits = [walk.step(step)[0] for step in range(3 * STEPS)]
    starts_at = [step for step in range(1, 2 * STEPS) if int(visits[step].timesteps[0]) == 999]
    assert starts_at
    first = starts_at[0]
    walked = [visits[first + k] for k in range(STEPS)]
    assert len({sample.prompts[0] for sample in walked}) == 1
    denoiser = tiny_family.denoiser if follow == "teacher" else walk.model.denoiser
    prompt, noise = walked[0].prompts[0], walked[0].x_t[:1]
    oracle = visited_by_the_pipeline(tiny_family, denoiser, prompt, noise, guidance)
    for sample, state in zip(walked, oracle, strict=True):
        torch.testing.assert_close(sample.x_t[:1], state, rtol=1e-4, atol=1e-4)
    assert int(visits[first + STEPS].timesteps[0]) == 999  # and then a new path starts


@pytest.mark.slow
def test_rolling_states_reach_all_noise_levels_and_need_no_image(
    loop: Any, narrow: Student, tiny_pool: PromptPool
) -> None:
    walk = loop(narrow, start="noise", num_inference_steps=STEPS)
    visits = [walk.step(step)[0] for step in range(4 * STEPS)]
    assert set(visits[0].timesteps.tolist()) == {999}
    later = torch.stack([sample.timesteps for sample in visits[STEPS:]])
    assert set(later.flatten().tolist()) == {999, 799, 599, 399, 199}
    assert any(len(set(row.tolist())) > 1 for row in later)
    pool = {*tiny_pool, ""}
    assert all(sample.replaced.all() and pool.issuperset(sample.prompts) for sample in visits)


def test_a_path_from_the_cache_starts_at_a_noised_latent_and_loses_noise(loop: Any, narrow: Student) -> None:
    walk = loop(narrow, start="cache", steps=3, num_inference_steps=20)
    visits = [walk.step(step)[0] for step in range(9)]
    for step, sample in enumerate(visits):
        fresh = noised_latents(walk.family, CONDITIONING, walk.source(step)[0])
        for i in range(BATCH):
            starts = torch.equal(sample.x_t[i], fresh.x_t[i])
            assert starts == (sample.prompts[i] == fresh.prompts[i] and sample.timesteps[i] == fresh.timesteps[i])
            if not starts:
                before = visits[step - 1]
                assert sample.replaced[i]
                assert sample.prompts[i] == before.prompts[i]
                assert 0 < before.timesteps[i] - sample.timesteps[i] <= 1000 / 20
    first_states = [s for s in range(9) if torch.equal(visits[s].x_t[0], fresh_x(walk, s))]
    assert first_states[0] == 0
    assert all(1 <= b - a <= 3 for a, b in pairwise(first_states))


def fresh_x(walk: Loop, step: int) -> Tensor:
    return noised_latents(walk.family, CONDITIONING, walk.source(step)[0]).x_t[0]


@pytest.mark.parametrize("path", [{"start": "cache", "follow": "student"}, {"start": "noise", "guidance_scale": 2.0}])
def test_a_student_that_equals_its_teacher_has_no_loss_on_any_path(
    loop: Any, twin: Student, path: dict[str, Any]
) -> None:
    walk = loop(twin, distill={"loss": {"guidance_weight": 1.0, "feature_normalization": "teacher"}}, **path)
    for step in range(4):
        losses = walk.step(step)[1]
        assert set(losses.terms) == {"output", "feature", "guidance"}
        assert not any(term.any() for term in (losses.total, *losses.terms.values()))


def test_positions_on_paths_are_spread_evenly_and_do_not_depend_on_how_the_batch_is_cut() -> None:
    whole = on_path(range(16), 0.25)
    assert whole.nonzero().flatten().tolist() == [3, 7, 11, 15]
    assert torch.equal(torch.cat([on_path(range(8, 16), 0.25), on_path(range(8), 0.25)]), whole.roll(8))
    assert on_path(range(16), 1.0).all()
    assert [int(on_path(range(n), share).sum()) for n, share in ((100, 0.29), (10, 0.7), (30, 0.1))] == [29, 7, 3]


def test_states_off_the_paths_are_noised_latents(loop: Any, narrow: Student) -> None:
    walk = loop(narrow, start="noise", share=0.5)
    for step in range(3):
        sample, fresh = walk.step(step)[0], noised_latents(walk.family, CONDITIONING, walk.source(step)[0])
        for i in (0, 2):
            assert torch.equal(sample.x_t[i], fresh.x_t[i])
            assert sample.prompts[i] == fresh.prompts[i]
            assert sample.replaced[i] == fresh.replaced[i]
        assert not torch.equal(sample.x_t[1], fresh.x_t[1])


def test_prompts_of_states_on_a_path_are_not_blended(loop: Any, narrow: Student) -> None:
    walk = loop(narrow, start="cache", share=0.5)
    for step in range(2):  # at the start of paths, and later
        batch = walk.source(step)[0]
        blend = Blend(batch.random_prompts, torch.tensor([0.1, 0.2, 0.3, 0.4]))
        fresh = replace(noised_latents(walk.family, CONDITIONING, batch), blend=blend)
        sample = walk.paths.place(step, slice(0, BATCH), fresh, batch)
        assert sample.blend is not None
        assert sample.blend.weight.tolist() == pytest.approx([0.1, 0, 0.3, 0])
        same = {"teacher": sample.x_t, "student": sample.x_t}
        walk.paths.advance(Comparison(sample=sample, noise=walk.family.noise, settings=LossSettings(), **same))


def test_the_batches_of_a_buffer_are_visited_in_turn(loop: Any, narrow: Student) -> None:
    walk = loop(narrow, start="cache", buffer=2, num_inference_steps=50)
    visits = [walk.step(step)[0] for step in range(4)]
    assert visits[2].prompts == visits[0].prompts
    assert visits[3].prompts == visits[1].prompts


def test_moving_paths_follow_the_teacher_first_and_the_student_later(loop: Any, narrow: Student) -> None:
    walk = loop(narrow, follow="moving")
    visits = [walk.place(step).visit for step in range(100)]
    followed = [visit.by_student for visit in visits]
    assert not followed[0].any()
    early, late = (torch.cat(part).float().mean() for part in (followed[:30], followed[70:]))
    assert early < 0.3
    assert late > 0.7


class TwoProcesses:
    """An accelerator of two processes that can only gather their states."""

    def __init__(self, both: list[Paths]) -> None:
        self.both = both

    def gather(self, tensor: Tensor) -> Tensor:
        names = [[torch.as_tensor(p._positions), p.x_t[None], p.timesteps[None], p.left[None]] for p in self.both]
        index = next(i for i, t in enumerate(names[0]) if t.shape == tensor.shape and torch.equal(t, tensor))
        return torch.cat([tensors[index] for tensors in names])


def test_the_states_of_all_processes_make_one_checkpoint_in_global_order(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DistillSettings.model_validate({"path": {"buffer": 2}})
    cut = [[0, 1, 4, 5], [2, 3, 6, 7]]  # two micro-batches of two, on two processes
    both: list[Paths] = []
    accelerator: Any = TwoProcesses(both)
    both += [paths_of(tiny_family, settings, positions, tiny_family.denoiser, accelerator) for positions in cut]
    for paths in both:
        for column, place in enumerate(paths._positions):
            paths.x_t[:, column] = place
            paths.timesteps[:, column] = 100 + place
            paths.left[:, column] = 200 + place
        paths.prompts = [[f"{block}:{place}" for place in paths._positions] for block in range(2)]
    monkeypatch.setattr(paths_module, "gather_object", lambda _: [paths.prompts for paths in both])
    tensors, prompts = both[0].state()
    assert tensors["x_t"][1, :, 0, 0, 0].tolist() == list(range(8))
    assert tensors["timesteps"][0].tolist() == list(range(100, 108))
    assert prompts == [[f"{block}:{place}" for place in range(8)] for block in range(2)]
    alone = paths_of(tiny_family, settings, cut[1], tiny_family.denoiser, accelerator)
    alone.restore(tensors, prompts)
    assert alone.left[0].tolist() == [202, 203, 206, 207]
    assert alone.prompts == both[1].prompts


@pytest.mark.slow
def test_a_state_keeps_its_guidance_scale_along_its_path(loop: Any, narrow: Student) -> None:
    walk = loop(narrow, distill={"guidance_distillation": [2, 8]}, start="noise", num_inference_steps=STEPS)
    before: Sample | None = None
    kept = started = 0
    for step in range(2 * STEPS):
        sample = walk.step(step)[0]
        fresh = walk.source(step)[0].guidance_scale
        assert sample.guidance_scale is not None
        for i in range(BATCH):
            if before is None or sample.timesteps[i] == 999:
                started += 1
                assert sample.guidance_scale[i] == fresh[i]
            else:
                kept += 1
                assert before.guidance_scale is not None
                assert sample.guidance_scale[i] == before.guidance_scale[i] != fresh[i]
        before = sample
    assert started >= 2 * BATCH
    assert kept >= STEPS
    assert torch.equal(walk.paths.state()[0]["guidance_scale"], walk.paths.guidance_scale)
