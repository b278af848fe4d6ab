from __future__ import annotations

from typing import Any

import pytest
import torch

from condistill.pipelines.sampling import Sampling
from condistill.profiling import timing
from condistill.profiling.timing import forward_timer, median_seconds, sec_per_image
from condistill.teachers.family import Family


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


def test_models_take_turns_and_the_first_round_is_not_counted(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0, 100, 0, 1, 1, 11, 0, 3, 3, 15, 0, 2, 2, 13])
    order: list[object] = []
    a, b = torch.nn.Identity(), torch.nn.Identity()
    monkeypatch.setattr("condistill.profiling.timing.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(tiny_family, "sample", lambda denoiser, *_, **__: order.append(denoiser))
    times = sec_per_image(tiny_family, {"a": a, "b": b}, {"a": Sampling(1, 1.0), "b": Sampling(1, 1.0)}, repeats=3)
    assert order == [a, b] * 4
    assert times == {"a": 2, "b": 11}


def test_generating_an_image_takes_time(tiny_family: Family) -> None:
    times = sec_per_image(tiny_family, {"teacher": tiny_family.denoiser}, {"teacher": Sampling(1, 1.0)}, repeats=1)
    assert times["teacher"] > 0
