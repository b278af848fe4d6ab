"""A schedule of p(u) and a loss term that are defined outside the package, as a plugin would."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from condistill.cache.latents import LatentCache
from condistill.config.conditioning import ScheduleSettings
from condistill.config.distill import DistillSettings, LossSettings
from condistill.config.recipe import Recipe
from condistill.config.sections import Probability, StudentSettings
from condistill.distill.batches import batch_source
from condistill.distill.history import HISTORY_NAME, read_history
from condistill.distill.loss_terms import Comparison, active_terms, register_loss_term
from condistill.distill.schedules import register_schedule
from condistill.distill.trainer import Trainer
from condistill.errors import CondistillError, RecipeError
from condistill.prompts.pool import PromptPool
from condistill.students.derive import derive_student
from condistill.teachers.family import Family

BASE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-base}\n"


class Step(ScheduleSettings):
    """p(u) = 1 from a noise level on, and 0 below it."""

    schedule: Literal["step"]
    threshold: Probability = 0.5


def mean_difference(comparison: Comparison) -> Tensor:
    """Return the squared difference between the means of the predictions, `[B]`."""
    means = [prediction.flatten(1).mean(1) for prediction in (comparison.student, comparison.teacher)]
    return (means[0] - means[1]).square()


@pytest.fixture(autouse=True)
def registered(own_registries: None) -> None:
    """Register both for one test."""
    register_schedule(Step, lambda settings: lambda noise_level: (noise_level >= settings.threshold).to(noise_level))
    register_loss_term("mean_difference", mean_difference)


def recipe(*overrides: str) -> Recipe:
    return Recipe.parse(BASE, overrides)


def test_a_registered_schedule_and_loss_term_are_trained_with_and_logged(
    tmp_path: Path, tiny_family: Family, tiny_cache: LatentCache, tiny_pool: PromptPool
) -> None:
    settings = recipe(
        "distill.steps=3",
        "distill.batch_size=8",
        "distill.conditioning={probability: {schedule: step, threshold: 0.7}, empty_prompt_probability: 0}",
        "distill.loss={feature_weight: 0, extra: {mean_difference: 100.0}}",
        "distill.logging.log_every=1",
    ).distill
    accelerator = Accelerator(cpu=True)
    source = batch_source(tiny_cache, tiny_pool, settings, seed=1, accelerator=accelerator)
    student = derive_student(tiny_family.denoiser, StudentSettings(width=0.5))
    where = {"directory": tmp_path, "accelerator": accelerator}
    Trainer(tiny_family, copy.deepcopy(student), source, settings, **where).run()
    for step, record in enumerate(read_history(tmp_path / HISTORY_NAME)):
        assert list(record.terms) == ["output", "mean_difference"]
        assert record.terms["mean_difference"] > 0
        assert record.loss == pytest.approx(record.terms["output"] + 100 * record.terms["mean_difference"])
        (batch,) = source(step)
        noise_level = tiny_family.noise.noise_level(tiny_family.noise.timesteps(batch.draws.uniform))
        assert record.replaced_prompt == (noise_level >= 0.7).double().mean()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{schedule: step, treshold: 0.1}", "probability.treshold is not a setting; did you mean 'threshold'?"),
        ("{schedule: step, threshold: 2}", "probability.threshold: input should be less than or equal to 1 (given: 2)"),
        ("{schedule: stop}", "'stop' is unknown; use 'exponential', 'sigmoid', 'constant', 'none', "),
    ],
)
def test_a_registered_schedule_has_the_same_messages_as_a_built_in_one(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(f"distill.conditioning.probability={override}")
    assert message in str(error.value)


def test_a_registered_schedule_survives_writing_and_variants() -> None:
    text = """variants={
        same: {distill: {conditioning: {probability: {threshold: 0.9}}}},
        other: {distill: {conditioning: {probability: {schedule: constant}}}},
    }"""
    given = recipe("distill.conditioning.probability={schedule: step, threshold: 0.25}", text)
    assert given.distill.conditioning.probability == Step(schedule="step", threshold=0.25)
    assert given.variant("same")[1].conditioning.probability == Step(schedule="step", threshold=0.9)
    assert given.variant("other")[1].conditioning.probability.schedule == "constant"
    assert Recipe.parse(given.to_yaml()) == given


def test_names_are_taken_once() -> None:
    class Exponential(ScheduleSettings):
        schedule: Literal["exponential"]

    with pytest.raises(CondistillError, match="the schedule 'exponential' is registered already"):
        register_schedule(Exponential, lambda _: torch.ones_like)
    with pytest.raises(CondistillError, match="the loss term 'task' is registered already"):
        register_loss_term("task", lambda comparison: comparison.student.flatten(1).sum(1))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"mean_diference": 1.0}, "no such loss term is registered; did you mean 'mean_difference'?"),
        ({"output": 1.0}, "names the built-in term 'output'; set distill.loss.output_weight"),
    ],
)
def test_an_unknown_extra_term_is_refused_with_the_nearest_name(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(CondistillError) as error:
        active_terms(LossSettings(extra=extra))
    assert message in str(error.value)


def test_an_extra_term_alone_is_something_to_learn() -> None:
    loss = {"output_weight": 0.0, "feature_weight": 0.0, "extra": {"mean_difference": 1.0}}
    terms = active_terms(DistillSettings.model_validate({"loss": loss}).loss)
    assert [(term.name, term.weight) for term in terms] == [("output", 0.0), ("mean_difference", 1.0)]
