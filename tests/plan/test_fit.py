"""Tests of the rules by which settings are chosen, with students of known memory and time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipes import BASE

from condistill.config.recipe import Recipe
from condistill.plan import ladder
from condistill.plan.devices import Hardware, find_device
from condistill.plan.fit import DoesNotFitError, Fit, fit, round_down
from condistill.plan.ladder import Case, Memory, Rung, Times

HOUR = 3600.0
Students = Callable[..., Case]


@pytest.fixture
def students(monkeypatch: pytest.MonkeyPatch) -> Students:
    """Return a case whose ladder has these students: a name, the samples that fit at once (0: none), and seconds."""

    def case(*rungs: tuple[str, int, float], count: int = 1, image: float = 1.0) -> Case:
        made = []
        for name, at_once, sample in rungs:
            memory = Memory(at_once, False, 2**30) if at_once else None
            times = Times(sample, 0.0, image, 10.0, count)
            rung: Any = SimpleNamespace(
                name=name, settings={"preset": name}, memory=memory, times=times, images_at_once=8
            )
            rung.candidate, rung.least_memory = SimpleNamespace(params=50), 10 * 2**30
            made.append(rung)
        skeleton: Any = SimpleNamespace()
        base = {"teacher": {"pipeline": "miniature"}, "prompts": {"files": ["miniature"]}}
        whole = Case(skeleton, Hardware(find_device("t4"), count), base)
        whole.__dict__["teacher"] = SimpleNamespace(params=100)
        for rung in made:
            rung.case = whole
        monkeypatch.setattr(Case, "ladder", lambda *_: iter(made))
        monkeypatch.setattr(Case, "cost", lambda _, recipe: planned(recipe, made))
        return whole

    return case


def planned(recipe: Any, rungs: list[Any]) -> Any:
    """Return the plan of the stubs, in which the training takes 1 % longer than planned while it was chosen."""
    times = next(rung.times for rung in rungs if rung.name == recipe.student.preset)
    training = 1.01 * recipe.distill.steps * times.step(recipe.distill.batch_size) / HOUR
    rest = (recipe.cache.size * times.image + recipe.evaluate.prompts_per_split * times.prompt) / HOUR
    return SimpleNamespace(hours=training + rest, training={"x": SimpleNamespace(hours=training)})


def text_of(fitted: Fit) -> str:
    return "\n".join(map(str, fitted.choices))


def test_the_largest_student_is_chosen_that_can_be_trained_enough(students: Students) -> None:
    ladder = [("b-base", 8, 0.1), ("c-small", 8, 0.05), ("c-micro", 16, 0.02)]
    for hours, expected in ((10, "b-base"), (3, "c-small"), (1, "c-micro"), (0.5, "c-micro")):
        fitted = fit(students(*ladder), prompts=10**6, budget=hours * HOUR)
        assert fitted.settings["student"] == {"preset": expected}, hours
        assert fitted.settings["distill"]["micro_batch_size"] == (16 if expected == "c-micro" else 8)
        assert 0.9 * hours < fitted.cost.hours <= hours


def test_a_student_that_needs_too_much_memory_is_named(students: Students) -> None:
    fitted = fit(students(("b-base", 0, 0.01), ("c-small", 4, 0.01)), prompts=1000, budget=None)
    assert fitted.settings["student"] == {"preset": "c-small"}
    assert "50 % of the parameters of the teacher; b-base would need more memory" in text_of(fitted)
    with pytest.raises(DoesNotFitError, match=r"c-small, the smallest of b-base, c-small, needs 10.0 GiB, and 90 % of"):
        fit(students(("b-base", 0, 0.01), ("c-small", 0, 0.01)), prompts=1000)


def test_a_budget_that_is_too_small_names_the_smallest_sensible_one(students: Students) -> None:
    with pytest.raises(DoesNotFitError, match=r"a budget of 30.0 min is too small on t4: c-micro, .* about 2.37 h for"):
        fit(students(("c-micro", 8, 0.2)), prompts=1000, budget=0.5 * HOUR)
    fit(students(("c-micro", 8, 0.2)), prompts=1000, budget=2.4 * HOUR)


def test_half_of_the_prompts_and_a_fifth_of_the_budget_are_the_most_that_is_cached(students: Students) -> None:
    for prompts, budget, size, reason in (
        (1, None, 1, "the only one, so random conditioning has none to choose from"),
        (9, None, 4, "at least half stay uncached"),
        (10**6, None, 10_000, "random conditioning chooses from all"),
        (10**6, 100.0, 72_000, "20 % of the budget"),
        (10**6, 1000.0, 212_776, "random conditioning chooses from all"),
    ):
        fitted = fit(students(("b-base", 8, 0.01)), prompts=prompts, budget=budget and budget * HOUR)
        assert fitted.settings["cache"]["size"] == size
        assert f"cache: {size:,} of {prompts:,} prompts ({reason}" in text_of(fitted)


def test_the_batch_is_smaller_where_few_steps_would_be_left(students: Students) -> None:
    for hours, batch in ((100, 256), (6, 256), (4, 128), (2, 64), (1, 32)):
        distill = fit(students(("b-base", 64, 0.01)), prompts=10**6, budget=hours * HOUR).settings["distill"]
        assert distill["batch_size"] == batch, hours
        assert distill["steps"] >= 5_000
        assert distill["micro_batch_size"] == min(64, batch)
    longest = fit(students(("b-base", 64, 0.0001)), prompts=10**6, budget=1000 * HOUR).settings["distill"]
    assert longest["steps"] == 400_000


@pytest.mark.parametrize("count", [1, 3, 8, 1000])
def test_a_batch_is_cut_evenly_into_devices_and_micro_batches(students: Students, count: int) -> None:
    distill = fit(students(("b-base", 64, 0.01), count=count), prompts=1000).settings["distill"]
    share, rest = divmod(distill["batch_size"], count)
    assert rest == 0
    assert share % distill["micro_batch_size"] == 0
    assert 128 < distill["batch_size"] <= 256 or share == 1


@pytest.mark.parametrize(("free", "expected"), [(100, 8), (8, 8), (7, 4), (3, 2), (1, 1), (0, 1), (-5, 1)])
def test_as_many_images_are_generated_at_once_as_the_memory_allows(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    monkeypatch.setattr(ladder, "evaluations_per_image", lambda *_: 2)
    monkeypatch.setattr(ladder, "forward_numbers", lambda *_: 1)
    monkeypatch.setattr(ladder, "decoded_numbers", lambda *_: 5)
    monkeypatch.setattr(ladder, "PROCESS_BYTES", 0)
    monkeypatch.setattr(Rung, "recipe", lambda _: Recipe.parse(BASE))
    case: Any = SimpleNamespace(
        skeleton=SimpleNamespace(components={"unet": 50}), dtype=torch.float16, memory_limit=120 + 10 * free
    )
    case.teacher = SimpleNamespace(denoiser=None)
    assert Rung(case, {}, SimpleNamespace(params=10)).images_at_once == expected  # type: ignore[arg-type]


def test_half_precision_is_that_of_the_device(students: Students) -> None:
    assert students(("b-base", 8, 0.01)).mixed_precision == "fp16"
    for name, expected in (("h100", "bf16"), ("t4", "fp16")):
        assert Case(SimpleNamespace(), Hardware(find_device(name)), {}).mixed_precision == expected  # type: ignore[arg-type]
    for is_host, expected in ((True, "no"), (False, "bf16")):
        here = SimpleNamespace(device=SimpleNamespace(is_host=is_host, half=torch.bfloat16))
        assert Case(SimpleNamespace(), here, {}).mixed_precision == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 32, 64])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 7, 8, 31, 32, 63, 64, 100])
def test_the_largest_micro_batch_that_fits_is_found_and_checkpointing_only_where_few_fit(
    monkeypatch: pytest.MonkeyPatch, most: int, limit: int
) -> None:
    def job(_: Rung, size: int, *, checkpointing: bool, micro_batches: int) -> Any:
        assert micro_batches > 1  # whose gradients are there when the next is computed
        return SimpleNamespace(memory=lambda **_: SimpleNamespace(total=size if checkpointing else 2 * size))

    monkeypatch.setattr(Rung, "_job", job)
    monkeypatch.setattr(Rung, "_weights", 0)
    monkeypatch.setattr(ladder, "MOST_AT_ONCE", most)
    hardware = SimpleNamespace(device=SimpleNamespace(is_host=False))
    case: Any = SimpleNamespace(share=lambda _: 256, memory_limit=limit, hardware=hardware)
    memory = Rung(case, {}, None).memory  # type: ignore[arg-type]
    fitting = {
        (size, on): size * (1 if on else 2) <= limit for size in (1, 2, 4, 8, 16, 32, 64) for on in (True, False)
    }
    without = max((size for (size, on), fits in fitting.items() if fits and not on and size <= most), default=0)
    with_it = max((size for (size, on), fits in fitting.items() if fits and on and size <= most), default=0)
    if without >= min(4, most):
        assert memory is not None
        assert (memory.micro_batch_size, memory.checkpointing) == (without, False)
    elif with_it:
        assert memory is not None
        assert (memory.micro_batch_size, memory.checkpointing) == (with_it, True)
    else:
        assert memory is None


def test_numbers_are_rounded_down_to_three_digits() -> None:
    assert [round_down(number) for number in (0.2, 7.9, 999.9, 1234.5, 98_765)] == [1, 7, 999, 1230, 98_700]
