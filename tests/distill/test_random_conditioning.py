from __future__ import annotations

import ast
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from condistill.distill import random_conditioning as rc
from condistill.miniature.build import build_scheduler

SCHEDULES = {
    "exponential": (rc.exponential(3.0), lambda u: math.exp(-3.0 * (1 - u))),
    "sigmoid": (rc.sigmoid(), lambda u: 1 / (1 + math.exp(-20 * (u - 0.7)))),
    "constant": (rc.constant(0.3), lambda _: 0.3),
    "never": (rc.constant(0.0), lambda _: 0.0),
}
examples = settings(max_examples=40, deadline=None)
levels = st.lists(st.floats(0, 1), min_size=1, max_size=16)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_module_is_short_and_needs_torch_alone() -> None:
    source = Path(rc.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 200
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}


# the re-pairing probability


@pytest.mark.parametrize("name", SCHEDULES)
def test_p_is_its_closed_form(name: str) -> None:
    probability, expected = SCHEDULES[name]
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    oracle = torch.tensor([expected(x) for x in u.tolist()], dtype=torch.float64)
    torch.testing.assert_close(probability(u), oracle)


def test_the_papers_p_has_the_papers_values_and_mean() -> None:
    timesteps = torch.tensor([0, 250, 500, 750, 900, 999], dtype=torch.float64)
    table = torch.tensor([0.0067, 0.0235, 0.082, 0.287, 0.607, 0.995], dtype=torch.float64)
    torch.testing.assert_close(rc.exponential()(timesteps / 1000), table, rtol=0, atol=5e-4)
    middles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert rc.exponential()(middles).mean().item() == pytest.approx((1 - math.exp(-5)) / 5, rel=1e-6)
    assert rc.exponential()(torch.arange(1000) / 1000).mean().item() == pytest.approx(0.198, abs=5e-4)


@examples
@given(levels, st.floats(0, 20), st.floats(1, 40), st.floats(0, 1))
def test_p_is_a_probability_and_never_falls_as_noise_grows(
    noise_levels: list[float], lambda_: float, slope: float, middle: float
) -> None:
    u = torch.tensor(noise_levels, dtype=torch.float64).sort().values
    for probability in (rc.exponential(lambda_), rc.sigmoid(slope, middle), rc.constant(middle)):
        p = probability(u)
        assert ((p >= 0) & (p <= 1)).all()
        assert (p.diff() >= -1e-12).all()


# re-pairing


def pair(conditioning: rc.RandomConditioning, u: torch.Tensor, seed: int = 0, *, empty: bool = False):
    cached, random = [f"cached {i}" for i in range(len(u))], [f"random {i}" for i in range(len(u))]
    coins = torch.rand(2, len(u), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return conditioning(cached, random, u, coin=coins[0], empty_coin=coins[1] if empty else None)


@examples
@given(levels, st.integers(0, 2**31))
def test_p_of_0_never_replaces_a_prompt_and_p_of_1_always_does(noise_levels: list[float], seed: int) -> None:
    u = torch.tensor(noise_levels, dtype=torch.float64)
    prompts, replaced = pair(rc.RandomConditioning(rc.constant(0.0)), u, seed)
    assert prompts == [f"cached {i}" for i in range(len(u))]
    assert not replaced.any()
    prompts, replaced = pair(rc.RandomConditioning(rc.constant(1.0)), u, seed)
    assert prompts == [f"random {i}" for i in range(len(u))]
    assert replaced.all()


def test_p_of_0_and_1_hold_for_the_largest_and_smallest_coins() -> None:
    coin = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for p in (0.0, 1.0):
        _, replaced = rc.RandomConditioning(rc.constant(p))(["a", "b"], ["c", "d"], u, coin=coin)
        assert replaced.tolist() == [bool(p)] * 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_prompts_are_replaced_with_probability_p_in_every_tenth_of_the_noise_level(name: str) -> None:
    probability, _ = SCHEDULES[name]
    n = 40_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    _, replaced = pair(rc.RandomConditioning(probability), u, seed=1)
    for part, p in zip(replaced.double().chunk(10), probability(u).chunk(10), strict=True):
        expected = p.mean().item()
        sigma = math.sqrt((p * (1 - p)).mean().item() / len(p))
        assert abs(part.mean().item() - expected) <= 4.5 * sigma


@examples
@given(levels, st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_every_prompt_is_cached_random_or_empty_and_flagged_so(
    noise_levels: list[float], seed: int, p: float, p_empty: float
) -> None:
    u = torch.tensor(noise_levels, dtype=torch.float64)
    conditioning = rc.RandomConditioning(rc.constant(p), p_empty)
    prompts, replaced = pair(conditioning, u, seed, empty=True)
    before, replaced_prompt = pair(conditioning, u, seed)
    for i, prompt in enumerate(prompts):
        assert prompt in ("", before[i])
        assert replaced[i].item() == (prompt != f"cached {i}")
    assert (replaced | ~replaced_prompt).all()


def test_prompts_become_empty_after_re_pairing() -> None:
    n = 20_000
    conditioning = rc.RandomConditioning(rc.constant(1.0), 0.1)
    prompts, replaced = pair(conditioning, torch.ones(n), seed=2, empty=True)
    assert set(replaced.tolist()) == {True}
    empty = sum(prompt == "" for prompt in prompts) / n
    assert abs(empty - 0.1) < 4.5 * math.sqrt(0.09 / n)
    assert all(prompt == "" or prompt.startswith("random") for prompt in prompts)


def test_without_an_empty_coin_no_prompt_becomes_empty() -> None:
    prompts, _ = pair(rc.RandomConditioning(rc.constant(0.5), 1.0), torch.ones(50))
    assert "" not in prompts


@pytest.mark.parametrize("lengths", [(2, 3, 3, 3), (3, 2, 3, 3), (3, 3, 2, 3), (3, 3, 3, 2)])
def test_lengths_that_differ_are_refused(lengths: tuple[int, ...]) -> None:
    cached, random, u, coin = lengths
    with pytest.raises(
        ValueError, match=f"{cached} cached and {random} random prompts, {u} noise levels and {coin} coins"
    ):
        rc.RandomConditioning()(["a"] * cached, ["b"] * random, torch.ones(u), coin=torch.ones(coin))


# losses


def test_the_error_is_the_mean_square_of_each_sample() -> None:
    student, teacher = normal(0, 3, 4, 8, 8), normal(1, 3, 4, 8, 8)
    oracle = ((student.double().numpy() - teacher.double().numpy()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(rc.mse(student, teacher).double(), torch.from_numpy(oracle), rtol=1e-6, atol=0)


def test_the_error_of_half_precision_predictions_is_computed_in_float32() -> None:
    large = torch.full((1, 8), 300.0, dtype=torch.float16)  # 300 squared is above float16's range
    assert rc.mse(large, torch.zeros_like(large)).item() == 300.0**2


def test_the_feature_loss_is_the_sum_over_layers() -> None:
    shapes = [(3, 8, 4, 4), (3, 16, 2, 2), (3, 5, 7)]
    students = [normal(i, *shape) for i, shape in enumerate(shapes)]
    teachers = [normal(9 + i, *shape) for i, shape in enumerate(shapes)]
    oracle = sum(
        ((s.double() - t.double()) ** 2).reshape(3, -1).mean(1) for s, t in zip(students, teachers, strict=True)
    )
    torch.testing.assert_close(rc.feature_loss(students, teachers).double(), oracle, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="longer than"):
        rc.feature_loss(students[:2], teachers)


def test_normalized_feature_losses_do_not_depend_on_the_scale_of_the_features() -> None:
    students, teachers = [normal(i, 3, 8, 4, 4) for i in (0, 1)], [normal(i, 3, 8, 4, 4) for i in (2, 3)]
    oracle = sum(
        ((s.double() - t.double()) ** 2).mean((1, 2, 3)) / (t.double() ** 2).mean((1, 2, 3))
        for s, t in zip(students, teachers, strict=True)
    )
    given = rc.feature_loss(students, teachers, normalized=True)
    torch.testing.assert_close(given.double(), oracle, rtol=1e-5, atol=0)
    louder = [[100 * pair[0], pair[1]] for pair in (students, teachers)]
    torch.testing.assert_close(rc.feature_loss(*louder, normalized=True), given)
    assert (rc.feature_loss(*louder) > 100 * rc.feature_loss(students, teachers)).all()


def test_layers_have_their_own_weights() -> None:
    students, teachers = [normal(i, 3, 8, 4, 4) for i in (0, 1)], [normal(i, 3, 8, 4, 4) for i in (2, 3)]
    alone = [rc.feature_loss([s], [t]) for s, t in zip(students, teachers, strict=True)]
    given = rc.feature_loss(students, teachers, weights=[0.5, 4.0])
    torch.testing.assert_close(given, 0.5 * alone[0] + 4 * alone[1])
    with pytest.raises(ValueError, match="longer than"):
        rc.feature_loss(students, teachers, weights=[1.0, 1.0, 1.0])


def test_a_teacher_layer_of_zeros_does_not_divide_by_zero() -> None:
    silent = [torch.zeros(2, 4)]
    assert rc.feature_loss(silent, silent, normalized=True).tolist() == [0, 0]


def test_the_guidance_loss_ignores_shifts_that_do_not_depend_on_the_prompt() -> None:
    teacher, null, shift = normal(0, 3, 4, 8, 8), normal(1, 3, 4, 8, 8), normal(2, 3, 4, 8, 8)
    same = rc.guidance_loss(teacher + shift, null + shift, teacher, null)
    torch.testing.assert_close(same, torch.zeros(3), rtol=0, atol=1e-10)
    other = rc.guidance_loss(teacher + shift, null, teacher, null)
    torch.testing.assert_close(other, rc.mse(shift, torch.zeros_like(shift)), rtol=1e-5, atol=1e-6)


def test_every_loss_of_a_student_that_equals_its_teacher_is_0() -> None:
    output, features = normal(0, 3, 4, 8, 8), [normal(1, 3, 8, 4, 4), normal(2, 3, 16, 2, 2)]
    kept = torch.zeros(3, dtype=torch.bool)
    for loss in (rc.mse(output, output), rc.feature_loss(features, features), rc.task_loss(output, output, kept)):
        assert loss.tolist() == [0, 0, 0]


def test_the_task_loss_has_gradients_only_for_samples_that_kept_their_prompt() -> None:
    student, target = normal(0, 4, 4, 8, 8).requires_grad_(), normal(1, 4, 4, 8, 8)
    replaced = torch.tensor([True, False, True, False])
    loss = rc.task_loss(student, target, replaced)
    assert loss[replaced].tolist() == [0, 0]
    assert torch.equal(loss[~replaced], rc.mse(student, target)[~replaced])
    loss.sum().backward()
    assert student.grad is not None
    assert not student.grad[replaced].any()
    assert student.grad[~replaced].all()


def test_an_empty_prompt_has_no_true_target() -> None:
    _, replaced = pair(rc.RandomConditioning(rc.constant(0.0), 1.0), torch.ones(3), empty=True)
    assert rc.task_loss(normal(0, 3, 4), normal(1, 3, 4), replaced).tolist() == [0, 0, 0]


# the space the output loss is measured in


def scheduler(prediction_type: str) -> DDIMScheduler:
    ddim = DDIMScheduler.from_config(
        build_scheduler(prediction_type).config, timestep_spacing="leading", steps_offset=0
    )
    ddim.set_timesteps(1000)
    return ddim


@pytest.mark.parametrize("weighting", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_weighted_loss_is_the_loss_in_that_space(prediction_type: str, weighting: rc.Weighting) -> None:
    diffusion = scheduler(prediction_type)
    checked = 0
    for t in range(0, 1000, 37):
        alpha_bar = diffusion.alphas_cumprod[t].double()
        x_t = normal(t, 1, 4, 8, 8).double()
        in_space = []
        predictions = [normal(t + k, 1, 4, 8, 8).double() for k in (1, 2)]
        for prediction in predictions:
            x_0 = diffusion.step(prediction, t, x_t).pred_original_sample
            noise = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
            velocity = diffusion.get_velocity(x_0, noise, torch.tensor([t]))
            in_space.append({"epsilon": noise, "x0": x_0, "v": velocity}[weighting])
        factor = (1 - alpha_bar) * (1 if prediction_type == "v_prediction" else 1 / alpha_bar)
        if weighting == "x0" and not 0.1 < factor < 10:
            continue
        checked += 1
        weight = rc.output_weight(weighting, alpha_bar[None], prediction_type=prediction_type)
        (first, second), (first_in_space, second_in_space) = predictions, in_space
        given = weight.item() * (first - second).square().mean().item()
        assert given == pytest.approx((first_in_space - second_in_space).square().mean().item(), rel=1e-4)
    assert checked >= 10


@pytest.mark.parametrize("weighting", ["native", "epsilon", "x0", "v", "min_snr"])
def test_the_weighted_loss_of_a_flow_is_the_loss_in_that_space(weighting: rc.Weighting) -> None:
    """x_0 and the noise that two velocities imply, in float64, with those of a diffusion of the same signal share."""
    for sigma in torch.linspace(0.02, 0.98, 25, dtype=torch.float64):
        x_t, velocities = normal(3, 1, 4, 8, 8).double(), [normal(k, 1, 4, 8, 8).double() for k in (1, 2)]
        alpha_bar = (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)
        in_space = []
        for velocity in velocities:
            x_0, noise = x_t - sigma * velocity, x_t + (1 - sigma) * velocity
            torch.testing.assert_close((1 - sigma) * x_0 + sigma * noise, x_t)
            v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_0
            in_space.append({"native": velocity, "epsilon": noise, "v": v}.get(weighting, x_0))
        of_x_0 = {"min_snr": (((1 - sigma) / sigma) ** 2).clamp(max=5).item()}.get(weighting, 1.0)
        expected = of_x_0 * (in_space[0] - in_space[1]).square().mean().item()
        weight = rc.output_weight(weighting, alpha_bar[None], prediction_type="flow", clip=(0.0, 1.0))
        given = weight.item() * (velocities[0] - velocities[1]).square().mean().item()
        assert given == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weighting", ["native", "epsilon", "x0", "v", "min_snr"])
def test_the_weight_of_a_flow_is_finite_at_pure_noise(weighting: rc.Weighting) -> None:
    weight = rc.output_weight(weighting, torch.tensor([0.0, 0.5]), prediction_type="flow")
    assert torch.isfinite(weight).all()
    assert weight[0] == {"native": 1, "epsilon": 0, "x0": 1, "v": 1, "min_snr": 0}[weighting]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_is_the_published_weight(prediction_type: str) -> None:
    diffusion = scheduler(prediction_type)
    timesteps = torch.arange(1, 1000, 50)
    snr = compute_snr(diffusion, timesteps)
    published = snr.clamp(max=5) / (snr if prediction_type == "epsilon" else snr + 1)
    given = rc.output_weight("min_snr", diffusion.alphas_cumprod[timesteps], prediction_type=prediction_type)
    torch.testing.assert_close(given, published, rtol=1e-4, atol=0)


def test_weights_stay_within_the_clip_at_the_ends_of_the_schedule() -> None:
    alpha_bar = torch.tensor([0.9999, 1e-4])
    assert rc.output_weight("x0", alpha_bar).tolist() == pytest.approx([0.1, 10])
    assert rc.output_weight("v", alpha_bar).tolist() == pytest.approx([1.0001, 1e4], rel=1e-5)
    assert rc.output_weight("x0", alpha_bar, clip=(0.5, 2)).tolist() == [0.5, 2]


@pytest.mark.parametrize("weighting", ["native", "epsilon", "x0", "v", "min_snr"])
def test_the_weight_of_v_prediction_is_finite_at_pure_noise(weighting: rc.Weighting) -> None:
    weight = rc.output_weight(weighting, torch.tensor([0.0, 0.5]), prediction_type="v_prediction")
    assert torch.isfinite(weight).all()
    assert weight[0] == {"native": 1, "epsilon": 0, "x0": 1, "v": 1, "min_snr": 0}[weighting]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_native_weight_is_1_as_in_the_paper(prediction_type: str) -> None:
    alpha_bar = torch.linspace(1e-4, 0.9999, 50)
    assert (rc.output_weight("native", alpha_bar, prediction_type=prediction_type) == 1).all()
    same = {"epsilon": "epsilon", "v_prediction": "v"}[prediction_type]
    torch.testing.assert_close(
        rc.output_weight(same, alpha_bar, prediction_type=prediction_type),  # type: ignore[arg-type]
        torch.ones(50),
    )


@examples
@given(st.floats(1e-4, 1 - 1e-4))
def test_x0_favours_noisier_timesteps_and_min_snr_never_exceeds_1(alpha_bar: float) -> None:
    a = torch.tensor([alpha_bar, alpha_bar * 0.9], dtype=torch.float64)
    less, more = rc.output_weight("x0", a).tolist()
    assert more >= less
    assert (rc.output_weight("min_snr", a) <= 1 + 1e-12).all()
