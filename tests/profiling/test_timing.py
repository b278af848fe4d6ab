from __future__ import annotations

from typing import Any

import pytest
import torch

from condistill.pipelines.sampling import Sampling
from condistill.profiling import timing
from condistill.profiling.timing import Timing, forward_timer, median_seconds, time_images
from condistill.teachers.family import Family


@pytest.fixture(autouse=True)
def rounds_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time as a user's evaluation does, not as seldom as other tests."""
    monkeypatch.setattr(timing, "MIN_ROUNDS", 5)
    monkeypatch.setattr(timing, "MAX_SECONDS", 3.0)


def test_timing_a_forward_does_not_change_the_random_state(tiny_family: Any) -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        shapes = type(tiny_family.denoiser).from_config(dict(tiny_family.denoiser.config))
    assert forward_timer(tiny_family, repeats=1)(shapes) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_the_shortest_time_of_a_forward_is_taken(tiny_family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        shapes = type(tiny_family.denoiser).from_config(dict(tiny_family.denoiser.config))
    clock = iter((0, 1, 10, 15, 20, 22, 30, 37))  # the first warms up; then 5, 2 and 7 seconds
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    assert forward_timer(tiny_family, repeats=3)(shapes) == 2


def test_the_median_time_is_taken_and_preparation_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("condistill.profiling.timing.time.perf_counter", lambda: now[0])
    lengths = iter([9.0, 3.0, 2.0, 4.0])  # the first warms up

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    seconds = median_seconds(
        lambda: pass_time(next(lengths)), torch.device("cpu"), repeats=3, prepare=lambda: pass_time(100.0)
    )
    assert seconds == 3.0


def model(width: int = 1) -> torch.nn.Module:
    return torch.nn.Linear(width, 1)


class Machine:
    """A machine on which an image of each model takes the next of its times."""

    def __init__(self, family: Family, monkeypatch: pytest.MonkeyPatch, **seconds: list[float]) -> None:
        self.order: list[str] = []
        self.models = {name: model(width) for width, name in enumerate(seconds, 1)}
        self.family, now = family, [0.0]
        names = {id(each): name for name, each in self.models.items()}
        times = {name: iter(of_model) for name, of_model in seconds.items()}

        def sample(denoiser: torch.nn.Module, *_: Any, **__: Any) -> None:
            self.order.append(names[id(denoiser)])
            now[0] += next(times[self.order[-1]])

        monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(family, "sample", sample)

    def times(self) -> dict[str, Timing]:
        return time_images(self.family, self.models, dict.fromkeys(self.models, Sampling(1, 1.0)))


def test_models_take_turns_and_the_best_of_many_rounds_counts(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "MAX_ROUNDS", 3)
    monkeypatch.setattr(timing, "SLOW_SECONDS", 1000.0)
    machine = Machine(tiny_family, monkeypatch, a=[100, 1, 3, 2], b=[1, 12, 10, 11])
    assert machine.times() == {"a": Timing(1, 2, 3), "b": Timing(10, 11, 3)}
    assert "".join(machine.order) == "ababbaab"  # the first pair warms up


def test_the_number_of_rounds_follows_from_their_time(tiny_family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounds(seconds: float) -> int:
        return Machine(tiny_family, monkeypatch, a=[seconds] * 100).times()["a"].rounds

    assert [rounds(seconds) for seconds in (0.001, 0.25, 10.0)] == [
        timing.MAX_ROUNDS,
        timing.MAX_SECONDS / 0.25,
        timing.MIN_ROUNDS,
    ]


def test_images_that_take_half_a_minute_are_generated_twice(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tiny_family, monkeypatch, a=[20.0, 22.0], b=[10.0, 9.0])  # a third image would have no time
    assert machine.times() == {"a": Timing(20, 21, 2), "b": Timing(9, 9.5, 2)}


def test_models_of_the_same_shapes_that_are_sampled_alike_have_the_same_time(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tiny_family, monkeypatch, a=[1.0] * 50, b=[2.0] * 50)
    machine.models["c"] = model(1)  # has no time of its own
    times = machine.times()
    assert times["a"] == times["c"] != times["b"]
    slower = {"a": Sampling(1, 1.0), "b": Sampling(1, 1.0), "c": Sampling(2, 1.0)}
    with pytest.raises(KeyError):  # it is not timed as one of the others
        time_images(tiny_family, machine.models, slower)


def test_generating_an_image_takes_time(tiny_family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_ROUNDS", 2)
    times = time_images(tiny_family, {"teacher": tiny_family.denoiser}, {"teacher": Sampling(1, 1.0)})
    assert 0 < times["teacher"].shortest <= times["teacher"].median
