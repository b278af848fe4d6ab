"""A tiny teacher of shapes only, and recipes to plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from condistill.config.recipe import Recipe
from condistill.config.sections import TeacherSettings
from condistill.plan.skeleton import Skeleton, teacher_skeleton


@pytest.fixture(scope="session")
def tiny_skeleton(tiny_pipeline_dir: Path) -> Skeleton:
    return teacher_skeleton(TeacherSettings(pipeline=str(tiny_pipeline_dir)))


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    """A recipe for a pipeline; its prompts are nowhere."""

    def make(pipeline: Path | str, student: dict[str, Any], **sections: Any) -> Recipe:
        whole = {"teacher": {"pipeline": str(pipeline)}, "prompts": {"files": ["gone.txt"]}, "student": student}
        return Recipe.model_validate({**whole, **sections})

    return make
