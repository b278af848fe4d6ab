from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from condistill.config.conditioning import ConditioningSettings
from condistill.distill import random_conditioning as rc
from condistill.distill.schedules import probability_of


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, rc.exponential(5.0)),
        ({"schedule": "exponential", "lambda": 3.0}, rc.exponential(3.0)),
        ({"schedule": "sigmoid", "slope": 10.0, "midpoint": 0.5}, rc.sigmoid(10.0, 0.5)),
        ({"schedule": "constant", "probability": 0.25}, rc.constant(0.25)),
        ({"schedule": "none"}, rc.constant(0.0)),
    ],
)
def test_the_settings_of_a_schedule_give_its_function(
    schedule: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    settings = ConditioningSettings.model_validate({"probability": schedule})
    u = torch.linspace(0, 1, 11)
    assert torch.equal(probability_of(settings.probability)(u), expected(u))
