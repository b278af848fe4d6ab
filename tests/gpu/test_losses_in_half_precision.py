"""p(u) and the losses on a GPU against float64 on the CPU. They need torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from condistill.distill import random_conditioning as rc

SHAPE = (6, 4, 16, 16)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


def draw(count: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return normal tensors `[B, C, h, w]`, rounded to a dtype."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(count)]


def exact(*tensors: Tensor) -> list[Tensor]:
    """Return the same values in float64 on the CPU."""
    return [tensor.detach().cpu().double() for tensor in tensors]


def mean_square(tensor: Tensor) -> Tensor:
    return tensor.square().flatten(1).mean(1)


@DTYPES
@pytest.mark.parametrize(
    "probability",
    [rc.exponential(5.0), rc.sigmoid(20.0, 0.7), rc.constant(0.25)],
    ids=["exponential", "sigmoid", "constant"],
)
def test_the_probability_of_replacing_a_prompt_is_that_of_float64_to_rounding(
    device: torch.device, dtype: torch.dtype, probability: Callable[[Tensor], Tensor]
) -> None:
    noise_level = torch.linspace(0, 1, 101, dtype=torch.float64).to(device, dtype)
    found = probability(noise_level)
    assert found.dtype == dtype
    # the exponent is at most 14 at the ends of the sigmoid: its rounding, of half an epsilon, is the relative error
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(*exact(found), probability(*exact(noise_level)), rtol=tolerance, atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1


@DTYPES
def test_the_device_replaces_the_prompts_that_the_cpu_replaces(device: torch.device, dtype: torch.dtype) -> None:
    count = 200
    cached, random = [f"cached {i}" for i in range(count)], [f"random {i}" for i in range(count)]
    noise_level = (torch.arange(count) / count).to(dtype)
    coin, empty_coin = torch.rand(2, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    conditioning = rc.RandomConditioning()
    on_device = conditioning(
        cached, random, noise_level.to(device), coin=coin.to(device), empty_coin=empty_coin.to(device)
    )
    # p(u) rounds differently on the CPU, so only coins that are within the rounding of p(u) may decide otherwise
    probability = conditioning.probability(noise_level.double())
    close = (coin - probability).abs() <= 16 * torch.finfo(dtype).eps * probability
    expected = conditioning(cached, random, noise_level.double(), coin=coin, empty_coin=empty_coin)
    assert close.sum() < count / 10
    assert torch.equal(on_device[1].cpu()[~close], expected[1][~close])
    pairs = zip(on_device[0], expected[0], close.tolist(), strict=True)
    assert all(one == other for one, other, is_close in pairs if not is_close)


@DTYPES
def test_losses_of_half_precision_outputs_are_computed_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    student, student_null, teacher, teacher_null = draw(4, dtype, device)
    s, s_null, t, t_null = exact(student, student_null, teacher, teacher_null)
    replaced = torch.tensor([True, False] * 3)
    found = {
        "mse": rc.mse(student, teacher),
        "task": rc.task_loss(student, teacher, replaced.to(device)),
        "guidance": rc.guidance_loss(student.float(), student_null.float(), teacher.float(), teacher_null.float()),
        "features": rc.feature_loss(
            [student, student_null], [teacher, teacher_null], weights=[1.0, 0.5], normalized=True
        ),
    }
    expected = {
        "mse": mean_square(s - t),
        "task": torch.where(replaced, 0.0, mean_square(s - t)),
        "guidance": mean_square((s - s_null) - (t - t_null)),
        "features": mean_square(s - t) / mean_square(t) + 0.5 * mean_square(s_null - t_null) / mean_square(t_null),
    }
    for name, loss in found.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(*exact(loss), expected[name], rtol=1e-5, atol=0)


def test_squares_beyond_the_range_of_float16_do_not_overflow(device: torch.device) -> None:
    student = torch.full(SHAPE, 1000.0, device=device, dtype=torch.float16)  # float16 ends at 65,504
    torch.testing.assert_close(rc.mse(student, torch.zeros_like(student)).cpu(), torch.full((len(student),), 1e6))


@DTYPES
def test_gradients_of_half_precision_outputs_are_those_of_float64_to_rounding(
    device: torch.device, dtype: torch.dtype
) -> None:
    student, teacher = draw(2, dtype, device)
    student.requires_grad_(True)
    rc.mse(student, teacher).mean().backward()
    s, t = exact(student, teacher)
    s.requires_grad_(True)
    mean_square(s - t).mean().backward()
    assert student.grad is not None
    assert s.grad is not None
    # gradients near 5e-4 are in the normal range of float16, and those below 6e-5 lose digits
    torch.testing.assert_close(*exact(student.grad), s.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("weighting", ["native", "epsilon", "x0", "v", "min_snr"])
def test_output_weights_are_those_of_float64(device: torch.device, weighting: Any, prediction_type: str) -> None:
    alpha_bar = torch.linspace(0.005, 0.995, 50)
    found = rc.output_weight(weighting, alpha_bar.to(device), prediction_type=prediction_type)
    expected = rc.output_weight(weighting, alpha_bar.double(), prediction_type=prediction_type)
    torch.testing.assert_close(*exact(found), expected, rtol=1e-4, atol=0)  # 1 - alpha_bar cancels near 1
