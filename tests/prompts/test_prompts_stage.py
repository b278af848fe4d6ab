from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recipes import BASE

from condistill.config.recipe import Recipe
from condistill.prompts import stage


def test_the_column_and_the_first_prompt_of_every_file_are_printed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("caption;source\na red star;web\n")
    (tmp_path / "b.txt").write_text("\n a moon\n")
    settings = ["prompts={files: [a.csv, b.txt], unseen_files: [b.txt], column: caption}", "cache.size=1"]
    lines: list[str] = []
    run: Any = SimpleNamespace(recipe=Recipe.parse(BASE, settings, folder=tmp_path), say=lines.append)
    stage._build(run, tmp_path)
    assert lines == [
        "prompts of a.csv, column 'caption': the first prompt is 'a red star'",
        "prompts of b.txt: the first prompt is 'a moon'",
    ]


@pytest.mark.parametrize(
    ("size", "schedule", "expected"), [(2, "exponential", True), (1, "exponential", False), (2, "none", False)]
)
def test_a_pool_that_is_cached_completely_leaves_random_conditioning_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, schedule: str, *, expected: bool
) -> None:
    (tmp_path / "a.txt").write_text("a star\na moon\n", encoding="utf-8")
    settings = [f"cache.size={size}", f"distill.conditioning.probability.schedule={schedule}"]
    recipe = Recipe.parse(BASE.replace("[miniature]", "[a.txt]"), settings, folder=tmp_path)
    lines: list[str] = []
    run: Any = SimpleNamespace(recipe=recipe, say=lambda text, **_: lines.append(text))
    stage._build(run, tmp_path)
    monkeypatch.setattr(stage, "_directory", lambda _: SimpleNamespace(path=tmp_path))
    stage._open(run)
    warned = "warning: every prompt of the pool is cached, so random conditioning has no others" in lines[-1]
    assert warned == expected
