"""A small recipe for tests, and the mistakes of changed ones."""

from __future__ import annotations

import pytest

from condistill.config.recipe import Recipe
from condistill.errors import RecipeError

BASE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-base}\n"


def mistakes(text: str, *overrides: str) -> list[str]:
    """Return the lines of the error for a recipe."""
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, overrides)
    first, *rest = str(caught.value).splitlines()
    assert not rest or f"{len(rest)} mistake(s)" in first
    return [line.strip() for line in rest] or [first]
