"""A recipe that was changed at random is refused with its place and a remedy, or it can be validated and planned."""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mutations import Mutant, mutants

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError, RecipeError
from condistill.plan import make_plan
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.workflow.preflight import check_inputs, examine

PLACE = re.compile(
    r"\b(line|override|the student|prompts?|teacher|cache|evaluate|variants|student|distill|seed)\b|recipe"
)
"""A line, an override, a setting or a student."""
REMEDY = re.compile(r"; |should|did you mean|must|has no default|at least|at most|needs |supports|has only|give |use ")
"""What to do, or what is allowed."""
LIMIT_SEC = 2.0


def whole_recipe(teacher: Path) -> dict[str, Any]:
    """Return a recipe with settings in every section."""
    recipe = Recipe.from_dict(
        {
            "teacher": {"pipeline": str(teacher)},
            "prompts": {"files": ["prompts.txt"], "unseen_words": ["star"]},
            "cache": {"size": 4, "num_inference_steps": 2, "batch_size": 4},
            "student": {"width": 0.5},
            "distill": {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "preview_every": 0},
            "variants": {
                "plain": {"distill": {"conditioning": {"probability": {"schedule": "none"}}}},
                "second": {"teacher": "plain", "student": {"width": 0.5}, "distill": {"path": {"steps": 2}}},
            },
            "evaluate": {"prompts_per_split": 2, "grid": 1},
        }
    )
    return recipe.model_dump(mode="json", by_alias=True)


class Judge:
    """Reads changed recipes, and checks that each is accepted as a whole or refused as a user needs it."""

    def __init__(self, folder: Path, skeleton: Skeleton, teacher: Path) -> None:
        self.folder, self.skeleton, self.teacher = folder, skeleton, teacher
        self.counts: Counter[str] = Counter()
        (folder / "prompts.txt").write_text("".join(f"a {word} star\n" for word in "abcdefgh"), encoding="utf-8")

    def judge(self, mutant: Mutant, *, plan: bool) -> None:
        """Check one recipe.

        Args:
            plan: whether to validate an accepted one, and to plan each fourth of them.
        """
        started = time.process_time()
        try:
            try:
                recipe = Recipe.parse(mutant.text, mutant.overrides, source="recipe.yaml", folder=self.folder)
            except RecipeError as error:
                self._check_message(str(error))
                return
            finally:
                assert time.process_time() - started < LIMIT_SEC, mutant
            self.counts["accepted"] += 1
            if plan:
                self._validate(recipe)
        except CondistillError as error:
            self._check_message(str(error))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {mutant}") from error

    def _validate(self, recipe: Recipe) -> None:
        check_inputs(recipe)
        is_own = recipe.teacher.model_dump(exclude={"dtype"}) == {
            "pipeline": str(self.teacher),
            **dict.fromkeys(("revision", "variant", "resolution")),
            "family": "auto",
        }
        skeleton = self.skeleton if is_own else teacher_skeleton(recipe.teacher)
        started = time.process_time()
        findings = examine(recipe, skeleton)
        assert time.process_time() - started < LIMIT_SEC, recipe
        for line in (*findings.refused, *findings.warnings):
            self._check_message(line)
        self.counts["validated"] += 1
        if self.counts["validated"] % 4 == 0:  # a plan takes seconds
            assert make_plan(recipe, device="a100-80gb").cost.hours >= 0
            self.counts["planned"] += 1

    def _check_message(self, message: str) -> None:
        first, *lines = message.splitlines()
        for line in lines or [first]:
            if line.strip().startswith("and "):
                continue
            assert PLACE.search(line), message
            assert REMEDY.search(line), message
        assert len(message) < 20_000
        assert "a bug" not in message
        self.counts["refused"] += 1


@pytest.fixture
def judge(tmp_path: Path, tiny_skeleton: Skeleton, tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge whose plans leave out the students that a teacher could have, which do not depend on the recipe."""
    make = importlib.import_module("condistill.plan.make")
    monkeypatch.setattr(make, "possible_students", lambda _: ())
    return Judge(tmp_path, tiny_skeleton, tiny_pipeline_dir)


def test_a_changed_recipe_is_accepted_or_refused_with_place_and_remedy(judge: Judge, tiny_pipeline_dir: Path) -> None:
    for mutant in mutants(whole_recipe(tiny_pipeline_dir), seed=0, count=180):
        judge.judge(mutant, plan=False)
    assert judge.counts["accepted"] > 10
    assert judge.counts["refused"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_a_changed_recipe_that_is_accepted_is_validated_and_planned(
    judge: Judge, tiny_pipeline_dir: Path, part: int
) -> None:
    for mutant in mutants(whole_recipe(tiny_pipeline_dir), seed=part + 1, count=200):
        judge.judge(mutant, plan=True)
    assert judge.counts["planned"] > 2
    assert judge.counts["refused"] > 80
