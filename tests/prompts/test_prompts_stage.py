from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
