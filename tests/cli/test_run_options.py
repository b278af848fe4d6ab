"""Tests of `condistill run`: the planned cost, the question before a long run, and quick runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from condistill import cli
from condistill.cli import cost

Lines = Callable[..., tuple[int, str]]


@pytest.fixture
def recipe(tmp_path: Path, tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of the default sizes, which would take days here; the working directory is that of the recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("".join(f"a {word} ball\n" for word in "abcdefgh"), encoding="utf-8")
    data = {
        "teacher": {"pipeline": str(tiny_pipeline_dir)},
        "prompts": {"files": ["prompts.txt"]},
        "cache": {"size": 6},
        "student": {"width": 0.5},
        "distill": {"steps": 10**9, "batch_size": 256},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Run a command; return its exit code and what it printed to stderr."""

    def run(*arguments: Any) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main([str(argument) for argument in arguments])
        return int(exited.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.slow
def test_a_long_run_is_confirmed_on_a_terminal_and_nothing_is_written_before(
    recipe: Path, call: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed: list[float] = []
    monkeypatch.setattr(cost, "_is_interactive", lambda: True)
    monkeypatch.setattr(cost, "_confirmed", lambda planned: confirmed.append(planned.hours))
    code, text = call("run", recipe)
    assert code == 1
    assert len(confirmed) == 1
    assert confirmed[0] > cost.LONG_HOURS
    assert "planned on cpu" in text
    assert "memory: " in text
    assert "nothing was started; a shorter recipe: `condistill init` with --budget and --device" in text
    assert not (recipe.parent / "runs").exists()


@pytest.mark.slow
def test_a_quick_run_takes_a_moment_and_its_last_lines_say_what_it_is(
    recipe: Path, call: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_is_interactive", lambda: True)
    monkeypatch.setattr(cost, "_confirmed", lambda _: pytest.fail("a quick run needs no question"))
    code, text = call("run", recipe, "--quick")
    out = recipe.parent / "runs" / "tiny-quick"
    assert code == 0
    assert (out / "report.html").is_file()
    made = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    assert made["quick"]
    assert made["distill"]["steps"] == 3
    *_, second, third = text.splitlines()
    assert "Quick run: a test of the set-up, not a student to use." in text
    assert f"then `condistill run {recipe}`" in second
    assert third == "the quick run can be deleted: runs/tiny-quick"
    again = call("run", recipe, "--quick", "-s", "cache.size=4")[1]
    assert "planned on" not in again  # every student is trained
    assert again.startswith("warning: cache.size=4: a quick run uses 2 instead\n")
    of_a_quick_recipe = call("run", out / "recipe.yaml", "--quick", "-o", out)[1]
    assert "next: write a recipe without --quick" in of_a_quick_recipe


@pytest.mark.slow
def test_neither_yes_nor_a_pipe_is_asked(recipe: Path, call: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    class StartedError(Exception):
        pass

    def start(*_: Any, **__: Any) -> None:
        raise StartedError

    monkeypatch.setattr("condistill.run.context.Run.open_directory", start)
    monkeypatch.setattr(cost, "_confirmed", lambda _: pytest.fail("there was a question"))
    for interactive, options in ((False, []), (True, ["--yes"])):
        monkeypatch.setattr(cost, "_is_interactive", lambda value=interactive: value)
        assert "StartedError" in call("run", recipe, *options)[1]


@pytest.mark.parametrize("command", ["cache", "evaluate", "report"])
def test_a_dry_run_names_a_missing_file_as_the_run_does(command: str, recipe: Path, call: Lines) -> None:
    (recipe.parent / "prompts.txt").unlink()
    code, printed = call(command, recipe, "--dry-run")
    assert code == 1
    assert "there is no prompt file" in printed
