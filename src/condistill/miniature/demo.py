"""The demo's recipe: the experiment on unseen prompts of the paper's Table 2, in miniature."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from condistill.config.recipe import Recipe


def demo_text() -> str:
    """Return the demo's recipe as YAML text, with its comments."""
    return resources.files("condistill.miniature").joinpath("demo.yaml").read_text(encoding="utf-8")


def demo_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """Return the demo's recipe with `key=value` overrides."""
    return Recipe.parse(demo_text(), overrides, source="the demo's recipe")
