"""Tests of the recipes in `recipes/`: each is valid, names the source of its values, and can be planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from condistill.config.recipe import Recipe
from condistill.plan import make_plan

HERE = Path(__file__).parent
RECIPES = sorted((HERE.parent / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in RECIPES]
SHAPES = {
    "sd14": "sd14",
    "own": "sd14",
    "sdxl": "sdxl",
    "pixart": "pixart_sigma",
    "sd35": "sd35_medium",
    "flux": "flux_dev",
}
"""Folder with the configs of the teacher, by the first word of the name of the recipe."""


def test_there_are_recipes_for_every_student_of_the_paper() -> None:
    paper = [f"sd14-{student}" for student in ("b-base", "b-small", "b-tiny", "c-base", "c-small", "c-tiny", "c-micro")]
    others = ["flux-lite", "own-fine-tune", "pixart-sigma-half", "sd14-unseen-animals", "sd35-medium-depth"]
    assert sorted(NAMES) == sorted([*paper, *others, "sdxl-koala-1b", "sdxl-koala-700m"])


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_is_valid_and_describes_its_results(path: Path) -> None:
    recipe = Recipe.load(path)
    assert list(recipe.variants) == ["random_conditioning"]
    text = path.read_text(encoding="utf-8")
    for heading in ("# Size: ", "# Score: ", "# Memory and hours: "):
        assert heading in text
    assert "arXiv 2504.02011" in text


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem.startswith("sd14")], ids=lambda path: path.stem)
def test_the_recipes_of_the_paper_have_the_settings_of_the_paper(path: Path) -> None:
    recipe = Recipe.load(path)
    assert (recipe.cache.num_inference_steps, recipe.cache.guidance_scale) == (25, 7.5)
    settings = recipe.variant("random_conditioning")[1]
    assert (settings.batch_size, settings.optimizer.learning_rate, settings.optimizer.max_grad_norm) == (256, 5e-5, 1.0)
    assert settings.conditioning.probability.model_dump(by_alias=True) == {"schedule": "exponential", "lambda": 5.0}
    assert settings.loss.output_weighting == "native"
    assert (settings.loss.features, settings.loss.feature_weight, settings.loss.feature_normalization) == (
        "stages",
        1.0,
        "none",
    )
    assert settings.conditioning.empty_prompt_probability == 0.1
    preset = re.sub("^sd14-", "", path.stem)
    assert recipe.student.preset == (preset if preset != "unseen-animals" else "b-base")


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_can_be_planned_and_documents_the_planned_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("condistill.plan.make.possible_students", lambda _: ())  # other tests plan them
    shape = HERE / "data" / SHAPES[path.stem.partition("-")[0]]
    recipe = Recipe.load(path, [f"teacher.pipeline={shape}"])
    card = "h200" if path.stem == "flux-lite" else "a100-80gb"
    plan = make_plan(recipe, device=card)
    training = plan.cost.training["random_conditioning"]
    assert plan.warnings == ()
    assert training.fits
    text = path.read_text(encoding="utf-8")
    if path.stem != "own-fine-tune":
        assert f"{plan.teacher.params:,} to {plan.students[0].params:,}" in text
    memory, hours = training.memory_bytes.total / 2**30, plan.cost.device_hours
    assert f"{memory:.0f} GiB at this micro_batch_size and {hours:,.0f} hours on one {card.upper()}" in text
