"""A stage from outside the package: one object and one line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.prompts import stage as prompts_stage
from condistill.run.context import Run
from condistill.run.stage_directory import StageDir
from condistill.workflow.compress import compress, register_stage, stage_names


class LongestPrompt:
    """Writes the longest prompt of the pool to a file."""

    NAME = "longest_prompt"

    def __init__(self) -> None:
        self.made = 0

    def _directory(self, run: Run) -> StageDir:
        return run.stage(self.NAME, lambda: {"prompts": prompts_stage.key(run)})

    def key(self, run: Run) -> str:
        return self._directory(run).key

    def is_done(self, run: Run) -> bool:
        return self._directory(run).is_done()

    def make(self, run: Run) -> None:
        self.made += 1
        longest = max(prompts_stage.open(run).pool, key=len)
        run.fill(self._directory(run), lambda path: (path / "prompt.txt").write_text(longest, encoding="utf-8"))

    def open(self, run: Run) -> str:
        return (run.path / self.NAME / "prompt.txt").read_text(encoding="utf-8")


@pytest.fixture
def stage(own_registries: None) -> LongestPrompt:
    """The toy stage, registered for one test."""
    toy = LongestPrompt()
    register_stage(toy, after="prompts")
    return toy


def test_a_registered_stage_runs_in_its_place_once_and_again_when_its_inputs_change(
    stage: LongestPrompt, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    assert stage_names() == ["prompts", "longest_prompt", "cache", "distill", "evaluate", "report"]
    prompts = tmp_path / "prompts.txt"

    def run(*lines: str, update: bool = False) -> None:
        prompts.write_text("\n".join(lines), encoding="utf-8")
        data = {
            "teacher": {"pipeline": str(tiny_pipeline_dir)},
            "prompts": {"files": [str(prompts)]},
            "cache": {"size": 1},
            "student": {"width": 0.5},
        }
        console = Console(file=io.StringIO())
        recipe = Recipe.parse(json.dumps(data))
        compress(recipe, tmp_path / "run", until="longest_prompt", update=update, console=console)

    run("a box", "a longer box")
    assert (tmp_path / "run" / "longest_prompt" / "prompt.txt").read_text("utf-8") == "a longer box"
    run("a box", "a longer box")
    assert stage.made == 1
    with pytest.raises(CondistillError, match=r"prompts.txt has changed"):
        run("a box", "the longest box of all")
    assert stage.made == 1
    run("a box", "the longest box of all", update=True)
    assert stage.made == 2


def test_a_stage_follows_a_known_one_and_has_a_name_of_its_own(stage: LongestPrompt) -> None:
    with pytest.raises(CondistillError, match="'longest_prompt' is registered already"):
        register_stage(stage, after="cache")
    with pytest.raises(CondistillError, match=r"there is no stage 'cach'; did you mean 'cache'\?"):
        compress(Recipe.model_construct(), "run", until="cach")
