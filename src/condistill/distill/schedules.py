"""The schedules of the re-pairing probability p(u) that a recipe can name, each bound to its function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from condistill.config.conditioning import (
    SCHEDULES,
    Constant,
    Exponential,
    Never,
    ScheduleSettings,
    Sigmoid,
    schedule_name,
)
from condistill.distill import random_conditioning as rc

Probability = Callable[[Tensor], Tensor]
"""p(u): from noise levels u in [0, 1] `[B]` to probabilities in [0, 1] `[B]`."""
S = TypeVar("S", bound=ScheduleSettings)
_PROBABILITIES: dict[type[ScheduleSettings], Callable[[Any], Probability]] = {
    Exponential: lambda settings: rc.exponential(settings.lambda_),
    Sigmoid: lambda settings: rc.sigmoid(settings.slope, settings.midpoint),
    Constant: lambda settings: rc.constant(settings.probability),
    Never: lambda _: rc.constant(0.0),
}


def register_schedule(settings_class: type[S], probability: Callable[[S], Probability]) -> None:
    """Add a schedule, so that a recipe can set `distill.conditioning.probability.schedule` to its name.

    Args:
        settings_class: the schedule's settings; its field `schedule: Literal["name"]` holds the name.
        probability: from the settings to p(u).

    Raises:
        CondistillError: another schedule has this name.
    """
    SCHEDULES.register(schedule_name(settings_class), settings_class)
    _PROBABILITIES[settings_class] = probability


def probability_of(settings: ScheduleSettings) -> Probability:
    """Return p(u) of the settings of a registered schedule."""
    return _PROBABILITIES[type(settings)](settings)
