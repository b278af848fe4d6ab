from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full_size import DATA
from rich.console import Console

from condistill.config.recipe import Recipe
from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.plan import make, make_plan, show_plan
from condistill.plan.candidates import teacher_candidate
from condistill.plan.cost import preview_hours
from condistill.plan.devices import Hardware, find_device
from condistill.plan.record import Plan, TrainingCost
from condistill.profiling.macs import macs
from condistill.students.derive import derive_student
from condistill.teachers.family import Family
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import parameters

RecipeOf = Callable[..., Recipe]
CACHE = {"size": 10, "num_inference_steps": 5, "guidance_scale": 2.0}


def training_of(plan: Plan, name: str = "random_conditioning") -> TrainingCost:
    return plan.cost.training[name]


@pytest.fixture(scope="module")
def tiny_plan(tiny_pipeline_dir: Path) -> Plan:
    whole = {"teacher": {"pipeline": str(tiny_pipeline_dir)}, "prompts": {"files": ["gone.txt"]}, "cache": CACHE}
    recipe = Recipe.model_validate({**whole, "student": {"width": 0.5}, "distill": {"steps": 100, "batch_size": 8}})
    return make_plan(recipe, device="a100-80gb", budget=60.0)


def test_the_json_of_a_plan_holds_all_of_it(tiny_plan: Plan) -> None:
    data = json.loads(tiny_plan.to_json())
    assert Plan.model_validate_json(tiny_plan.to_json()) == tiny_plan
    assert data["format"] == 2
    assert {"name", "params", "macs"} <= set(data["teacher"])
    assert all({"name", "params", "macs", "share_params", "share_macs"} <= set(s) for s in data["students"])
    costs = {"device", "cache", "training", "evaluation", "memory", "disk", "hours", "device_hours", "budget_hours"}
    assert set(data["cost"]) == costs
    assert "measured_latency_ms" not in data["teacher"]
    assert data["assumptions"]
    assert data["warnings"] == []


def test_students_are_counted_as_they_are_derived(tiny_plan: Plan, tiny_family: Family) -> None:
    size, length = tiny_family.latent_shape[1:], tiny_family.text_length
    first, by_name = tiny_plan.students[0], {s.name: s for s in tiny_plan.students}
    assert (first.name, first.of_recipe) == ("random_conditioning", True)
    for shown, settings in (
        (first, StudentSettings(width=0.5)),
        (by_name["c-micro"], StudentSettings(width=0.5)),
        (by_name["b-base"], StudentSettings(preset="b-base")),
    ):
        student = derive_student(tiny_family.denoiser, settings).denoiser
        assert shown.params == parameters(student)
        assert shown.macs == macs(student, size=size, text_length=length)
    assert first.share_params == first.params / parameters(tiny_family.denoiser)
    assert "depth 0.5" not in by_name  # a U-Net has none
    assert "c-base" not in by_name  # 0.8 of 16 channels are no whole groups


def test_the_cost_of_a_training_is_its_arithmetic_at_the_rate_of_the_device(
    tiny_plan: Plan, tiny_skeleton: Skeleton
) -> None:
    teacher, student, training = tiny_plan.teacher, tiny_plan.students[0], training_of(tiny_plan)
    assert training.flops_per_sample == 2 * (teacher.macs + 3 * student.macs + tiny_skeleton.text_macs)
    at_best = 8 * training.flops_per_sample / 312e12
    assert training.sec_per_step > at_best / 0.3
    assert training.samples_per_sec == pytest.approx(8 / training.sec_per_step)
    assert training.hours == pytest.approx(100 * training.sec_per_step / 3600 + training.preview_hours)


def test_memory_is_counted_by_part(tiny_plan: Plan) -> None:
    memory, teacher = training_of(tiny_plan).memory_bytes, tiny_plan.teacher
    student = tiny_plan.students[0].params
    assert memory.teacher == 2 * teacher.params  # bfloat16
    assert memory.other_components == 2 * (sum(teacher.components.values()) - teacher.params)
    assert memory.ema == 4 * student
    assert memory.optimizer == 2 * memory.gradients == 2 * memory.student > 8 * student  # maps are trained too
    assert memory.activations > 0
    assert memory.total == sum(count for part, count in memory if part != "total")


def test_the_cache_costs_its_forwards_and_its_disk(tiny_plan: Plan) -> None:
    cache = tiny_plan.cost.cache
    assert cache.images == 10
    assert cache.teacher_forwards == 10 * 5 * 2
    assert cache.disk_bytes == 10 * 4 * 8 * 8 * 2


def test_the_whole_is_the_sum_of_its_stages(tiny_plan: Plan) -> None:
    cost = tiny_plan.cost
    stages = [cost.cache, *cost.training.values(), cost.evaluation]
    assert cost.device_hours == pytest.approx(sum(stage.device_hours for stage in stages))


def test_the_ladder_shows_what_the_training_of_each_student_costs(tiny_plan: Plan) -> None:
    training = training_of(tiny_plan)
    ours, by_name = tiny_plan.students[0], {s.name: s for s in tiny_plan.students}
    assert ours.training_memory_bytes == training.memory_bytes.total
    assert ours.sec_per_step == training.sec_per_step
    same = by_name["c-micro"]  # half of the channels, as in the recipe
    assert same.training_memory_bytes == ours.training_memory_bytes
    assert same.sec_per_step == pytest.approx(ours.sec_per_step)
    assert same.training_hours == pytest.approx(100 * same.sec_per_step / 3600)
    larger = by_name["b-base"]
    assert larger.training_memory_bytes > same.training_memory_bytes
    assert all(student.fits for student in tiny_plan.students)


@pytest.mark.slow
def test_the_memory_of_another_student_is_about_right(recipe_of: RecipeOf) -> None:
    distill = {"micro_batch_size": 8, "mixed_precision": "bf16"}
    shown, exact = (
        make_plan(recipe_of(DATA / "sd14", {"preset": preset}, distill=distill), device="h100")
        for preset in ("b-base", "c-micro")
    )
    about = next(s for s in shown.students if s.name == "c-micro").training_memory_bytes
    assert about == pytest.approx(training_of(exact).memory_bytes.total, rel=0.08)


def test_the_steps_in_a_budget_leave_time_for_cache_and_evaluation(tiny_plan: Plan) -> None:
    cost = tiny_plan.cost
    left = 60 - 3600 * (cost.cache.hours + cost.evaluation.hours)
    assert cost.budget_hours == 60 / 3600
    for student in tiny_plan.students:
        assert student.steps_in_budget == int(left / student.sec_per_step) > 100


@pytest.mark.slow
def test_a_budget_that_is_too_short_leaves_no_steps(tiny_pipeline_dir: Path, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(tiny_pipeline_dir, {"width": 0.5})
    assert {each.steps_in_budget for each in make_plan(recipe, device="h100", budget=1e-6).students} == {0}
    assert {each.steps_in_budget for each in make_plan(recipe, device="h100").students} == {None}


def test_the_memory_of_every_stage_is_counted(tiny_plan: Plan) -> None:
    memory, teacher = tiny_plan.cost.memory, tiny_plan.teacher
    weights = 2 * sum(teacher.components.values())
    assert memory.load.device == weights
    assert memory.load.host > memory.training.host == memory.checkpoint.host  # no copy of the weights
    assert memory.cache.device > weights
    assert memory.training.device == training_of(tiny_plan).memory_bytes.total
    assert memory.saving.device == memory.checkpoint.device < memory.training.device
    assert memory.evaluation.device >= weights + 2 * tiny_plan.students[0].params


def test_the_disk_of_a_run_is_counted(tiny_plan: Plan) -> None:
    disk, student = tiny_plan.cost.disk, tiny_plan.students[0].params
    assert disk.latents == tiny_plan.cost.cache.disk_bytes
    assert disk.checkpoints == training_of(tiny_plan).checkpoint_bytes == 2 * 16 * student
    assert disk.pipelines > 4 * student
    assert disk.teacher == 0
    assert disk.evaluation == tiny_plan.cost.evaluation.images * 4 * 8 * 8 * 4
    assert disk.total == disk.latents + disk.checkpoints + disk.pipelines + disk.evaluation


def test_previews_cost_what_their_images_cost(
    tiny_pipeline_dir: Path, recipe_of: RecipeOf, tiny_skeleton: Skeleton
) -> None:
    teacher, hardware = teacher_candidate(tiny_skeleton), Hardware(find_device("t4"))

    def hours(every: int | None) -> float:
        recipe = recipe_of(tiny_pipeline_dir, {"width": 0.5}, distill={"steps": 100, "preview_every": every})
        models = (teacher, teacher)
        return preview_hours(recipe, "random_conditioning", tiny_skeleton, hardware, models, dtype=torch.float16)

    assert hours(0) == 0
    assert 0 < hours(100) < hours(None) < hours(1)
    images = hours(1) - hours(2)  # 50 grids of two prompts
    assert images == pytest.approx(50 * (hours(100) - hours(0)) / 2, rel=0.5)


@pytest.mark.slow
def test_the_settings_of_a_recipe_change_its_cost(tiny_pipeline_dir: Path, recipe_of: RecipeOf) -> None:
    def plan(count: int = 1, **distill: Any) -> TrainingCost:
        settings = {"batch_size": 8, "steps": 10, **distill}
        recipe = recipe_of(tiny_pipeline_dir, {"width": 0.5}, distill=settings)
        return training_of(make_plan(recipe, device="a100-80gb", count=count))

    plain, guided = plan(), plan(guidance_distillation=3.0)
    assert guided.teacher_forwards_per_sample == 2 * plain.teacher_forwards_per_sample
    assert guided.memory_bytes.student > plain.memory_bytes.student  # a projection of the scale is added
    checkpointed = plan(gradient_checkpointing=True)
    assert checkpointed.flops_per_sample > plain.flops_per_sample
    assert checkpointed.memory_bytes.activations < plain.memory_bytes.activations
    assert plan(optimizer={"ema_decay": 0.0}).memory_bytes.ema == 0
    halved = plan(count=2)
    assert halved.micro_batch_size == 4
    assert plain.hours > halved.hours > plain.hours / 2
    assert halved.memory_bytes.activations < plain.memory_bytes.activations


@pytest.mark.slow
def test_a_student_of_a_student_is_planned_with_that_one_as_its_teacher(
    tiny_pipeline_dir: Path, recipe_of: RecipeOf
) -> None:
    variants = {"first": {}, "second": {"teacher": "first"}}
    plan = make_plan(recipe_of(tiny_pipeline_dir, {"width": 0.5}, variants=variants), device="h100")
    first, second = (training_of(plan, name) for name in variants)
    sizes = {s.name: s.params for s in plan.students}
    assert second.memory_bytes.teacher == first.memory_bytes.teacher + 2 * sizes["first"]
    assert sizes["second"] < sizes["first"]


def test_a_student_without_shapes_cannot_be_planned(tiny_pipeline_dir: Path, recipe_of: RecipeOf) -> None:
    with pytest.raises(CondistillError, match=r"the student 'random_conditioning' cannot be made: width 0\.3"):
        make_plan(recipe_of(tiny_pipeline_dir, {"width": 0.3}), device="h100")


def test_only_the_present_device_can_be_measured(tiny_pipeline_dir: Path, recipe_of: RecipeOf) -> None:
    with pytest.raises(CondistillError, match="--measure times the present device only"):
        make_plan(recipe_of(tiny_pipeline_dir, {"width": 0.5}), device="h100", measure=True)


@pytest.mark.slow
def test_a_measured_plan_has_measured_figures_next_to_the_planned_ones(
    tiny_pipeline_dir: Path, recipe_of: RecipeOf
) -> None:
    recipe = recipe_of(tiny_pipeline_dir, {"width": 0.5}, distill={"batch_size": 2, "steps": 10})
    plan = make_plan(recipe, measure=True)
    assert plan.cost.device.measured
    for model in (plan.teacher, *plan.students):
        assert model.measured_latency_ms is not None
        assert model.measured_latency_ms > 0
        assert model.measured_memory_bytes is not None
        assert model.measured_memory_bytes > 4 * model.params
    assert training_of(plan).sec_per_step > 2e-3


@pytest.mark.slow
def test_equal_networks_are_measured_once(
    tiny_pipeline_dir: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(1.0)
    monkeypatch.setattr(make, "measure_forward", lambda *_: (next(seconds), 1))
    monkeypatch.setattr(make, "measure_step", lambda _: None)
    variants = {"a": {}, "b": {"distill": {"steps": 3}}, "c": {"student": {"width": 0.25}}}
    plan = make_plan(recipe_of(tiny_pipeline_dir, {"width": 0.5}, variants=variants), measure=True)
    a, b, c = (student.measured_latency_ms for student in plan.students if student.of_recipe)
    assert a == b != c


def test_a_plan_is_shown_without_exponents_and_in_units_of_its_size(tiny_plan: Plan) -> None:
    teacher = tiny_plan.teacher.model_copy(update={"latency_ms": 5.037e4})
    cost = tiny_plan.cost.model_copy(update={"hours": 652_018.1, "device_hours": 652_018.1})
    console = Console(record=True, width=200, file=io.StringIO())
    show_plan(tiny_plan.model_copy(update={"teacher": teacher, "cost": cost}), console)
    text = console.export_text()
    assert "50.4 s" in text
    assert "in total: 27,200 days, 652,000 device-hours" in text
    assert not re.search(r"\de[+-]\d", text)


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd14": ("SD-1.4", {"preset": "b-base"}),
    "sd21": ("SD-2.1", {"preset": "c-micro"}),
    "sdxl": ("SDXL", {"preset": "koala-700m"}),
    "pixart_sigma": ("PixArt-Sigma", {"depth": 0.5}),
    "sd35_medium": ("SD3.5-medium", {"depth": 0.5}),
    "flux_dev": ("FLUX.1-dev", {"depth": 0.5}),
    "sana_1600m": ("Sana-1.6B", {"depth": 0.5}),
}
"""The name in docs/plan.md and the student that is planned, by folder of tests/data."""


def documented(teacher: str) -> list[tuple[str, ...]]:
    """Student, parameters and GMACs of the rows of a teacher in the table of sizes, as written."""
    document = Path(__file__).parents[2] / "docs" / "plan.md"
    lines = [line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {teacher} |")]
    return [tuple(cell.strip(" `") for cell in line.strip("|").split("|")[1:]) for line in lines]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.slow
def test_a_full_size_teacher_is_planned_from_its_configs(name: str, recipe_of: RecipeOf) -> None:
    teacher, student = SHAPES[name]
    distill: dict[str, Any] = {"micro_batch_size": 4, "mixed_precision": "bf16", "gradient_checkpointing": True}
    if name == "flux_dev":
        distill["guidance_distillation"] = [1.5, 5.0]
    plan = make_plan(recipe_of(DATA / name, student, distill=distill), device="h200")
    models = [("-", plan.teacher), *((s.name, s) for s in plan.students if not s.of_recipe)]
    assert documented(teacher) == [(name, f"{m.params:,}", f"{m.macs / 1e9:,.1f}") for name, m in models]
    assert plan.warnings == ()
    training = training_of(plan)
    assert all(math.isfinite(value) and value > 0 for value in (training.hours, training.samples_per_sec))
    assert training.memory_bytes.activations > 2**28


@pytest.mark.slow
def test_a_plan_warns_of_a_recipe_that_a_run_would_refuse(recipe_of: RecipeOf) -> None:
    plan = make_plan(recipe_of(DATA / "flux_dev", {"depth": 0.5}, distill={"micro_batch_size": 1}), device="h200")
    assert any("the guidance scale is an input of the teacher" in line for line in plan.warnings)


def test_a_plan_as_json_has_no_control_characters(tiny_plan: Plan) -> None:
    plan = tiny_plan.model_copy(update={"assumptions": ("\x9b\u202e é",)})
    assert plan.to_json().isascii()
    assert Plan.model_validate_json(plan.to_json()) == plan
