from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes import BASE

from condistill.config.quick import SAMPLING_STEPS, quick_recipe, without_effect
from condistill.config.recipe import Recipe
from condistill.miniature.demo import demo_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
PATHS = "distill: {path: {share: 0.25, buffer: 8, steps: 20}, batch_size: 64, micro_batch_size: 16}"
CHAIN = """
variants:
  guided: {distill: {guidance_distillation: 7.5, steps: 7}}
  ten: {teacher: guided, distill: {few_steps: {num_inference_steps: 10}, batch_size: 12, micro_batch_size: 3}}
  five: {teacher: ten, distill: {few_steps: {num_inference_steps: 5}, path: {num_inference_steps: 5, share: 0.5}}}
  rolling: {distill: {path: {start: noise}, optimizer: {lr_scheduler: linear, warmup_steps: 1000}}}
  consistent: {distill: {few_steps: {method: consistency, num_inference_steps: 4}}}
"""


@pytest.mark.parametrize(
    "text",
    ["", PATHS, CHAIN, "cache: {size: 0}\ndistill: {path: {start: noise, buffer: 4}}", "evaluate: {seeds: [3, 4]}"],
)
def test_every_kind_of_recipe_stays_valid_and_becomes_small(text: str) -> None:
    recipe = Recipe.parse(BASE + text)
    quick = quick_recipe(recipe)
    assert quick.quick
    assert not recipe.quick
    assert (quick.cache.size, quick.cache.num_inference_steps) == (min(recipe.cache.size, 2), SAMPLING_STEPS)
    assert (quick.evaluate.prompts_per_split, quick.evaluate.grid, len(quick.evaluate.seeds)) == (1, 1, 1)
    for name in recipe.variants:
        (student, distill), (small_student, small) = recipe.variant(name), quick.variant(name)
        assert small_student == student
        assert small.steps == min(distill.steps, 3)
        assert small.batch_size <= 4
        assert small.optimizer.warmup_steps <= 1
        assert small.logging.log_every == 1
        kept: dict[str, Any] = {"few_steps", "guidance_distillation", "loss", "conditioning", "mixed_precision"}
        assert small.model_dump(include=kept) == distill.model_dump(include=kept)


def test_a_quick_recipe_stays_as_it_is() -> None:
    once = quick_recipe(Recipe.parse(BASE + CHAIN))
    assert quick_recipe(once) == once
    assert Recipe.parse(once.to_yaml()) == once


def test_a_batch_of_paths_has_whole_samples_and_divides_among_processes() -> None:
    distill = quick_recipe(Recipe.parse(BASE + PATHS)).distill
    assert (distill.batch_size, distill.micro_batch_size) == (4, 4)
    assert distill.path is not None
    assert (distill.path.steps, distill.path.num_inference_steps, distill.path.buffer) == (4, 4, 1)
    assert quick_recipe(Recipe.parse(BASE), processes=8).distill.batch_size == 16


def test_a_classifier_gets_the_images_that_it_needs() -> None:
    quick = quick_recipe(demo_recipe(()))
    assert quick.evaluate.prompts_per_split == 2
    assert quick.teacher == demo_recipe(()).teacher


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_recipes_of_the_repository_have_a_quick_form(path: Path) -> None:
    assert quick_recipe(Recipe.load(path)).quick


def test_an_override_without_effect_is_pointed_out() -> None:
    overrides = ["cache.size=4", "distill.steps=1", "seed=3", "evaluate={seeds: [3, 4]}", "distill.micro_batch_size=8"]
    recipe = Recipe.parse(BASE, overrides)
    assert list(without_effect(overrides, recipe, quick_recipe(recipe))) == [
        "cache.size=4: a quick run uses 2 instead",
        "evaluate={seeds: [3, 4]}: a quick run uses {batch_size: 2, grid: 1, prompts_per_split: 1, seeds: [3]} instead",
        "distill.micro_batch_size=8: a quick run uses 2 instead",
    ]
