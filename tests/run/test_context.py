from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.run.context import Run

BASE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-base}\n"


def test_a_launcher_that_splits_models_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run = Run(Recipe.parse(BASE), tmp_path / "run", console=Console(quiet=True))
    with pytest.raises(CondistillError, match="FSDP"):
        run.open_directory()
    assert not run.path.exists()
