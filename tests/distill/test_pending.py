from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from training import sample_at

from condistill.distill.pending import PendingStep


def pending_of(losses: list[float], norm: Tensor, *, signal: int = 0) -> PendingStep:
    pending = PendingStep(7)
    pending.add(torch.tensor(losses[:2]), sample_at([5, 50]))
    pending.add(torch.tensor(losses[2:]), sample_at([500, 900]))
    pending.start_check(signal=signal)
    pending.finish(norm)
    return pending


def test_a_finite_step_has_finite_answers() -> None:
    pending = pending_of([1.0, 2.0, 3.0, 4.0], torch.tensor(3.0), signal=15)
    assert (pending.loss_is_finite, pending.norm_is_finite, pending.signal) == (True, True, 15)
    assert pending.describe() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_by_its_sample(bad: float) -> None:
    pending = pending_of([1.0, 2.0, bad, 4.0], torch.tensor(3.0))
    assert (pending.loss_is_finite, pending.norm_is_finite) == (False, True)
    assert pending.describe() == ["t=500 'a red ball'"]


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_found(norm: float) -> None:
    pending = pending_of([1.0] * 4, torch.tensor(norm, dtype=torch.float64))
    assert (pending.loss_is_finite, pending.norm_is_finite) == (True, False)
