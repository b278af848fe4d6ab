"""Tests of the command line of `condistill evaluate`: what is a recipe, what a pipeline, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from condistill import cli
from condistill.cli.evaluate import is_recipe
from condistill.evaluate.protocols import load_protocol, protocol_names

RECIPE = {"teacher": {"pipeline": "miniature"}, "prompts": {"files": ["miniature"]}, "student": {"width": 0.5}}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
    return "recipe.yaml"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the error of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exited:
        cli.main(["evaluate", *arguments])
    assert exited.value.code == 1
    error = capsys.readouterr().err
    assert "unexpected" not in error
    return " ".join(error.split())


def test_a_recipe_is_a_yaml_file_or_another_file_that_is_no_weights(tmp_path: Path) -> None:
    for name in ("recipe", "model.safetensors"):
        (tmp_path / name).touch()
    assert is_recipe("gone.yaml")
    assert is_recipe(str(tmp_path / "recipe"))
    assert not any(map(is_recipe, (str(tmp_path / "model.safetensors"), str(tmp_path), "org/model", "miniature")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recipe.yaml", "miniature"), "takes one recipe or several pipelines, and got the recipe recipe.yaml and the"),
        (("recipe.yaml", "b.yaml"), "evaluate takes one recipe, and got recipe.yaml, b.yaml"),
        (("recipe.yaml", "--teacher", "a"), "--teacher chooses among pipelines, and a recipe has its teacher"),
        (("miniature",), "pipelines have no prompts of their own; add --prompts FILE"),
        (("miniature", "--dry-run", "-p", "a.txt"), "--dry-run plans the run of a recipe"),
        (("miniature", "./gone"), "there is no recipe and no pipeline ./gone; give a recipe file (.yaml)"),
        (("miniature", ""), "a name is empty"),
        (("gone.yaml",), "there is no recipe at gone.yaml"),
        (
            ("recipe.yaml", "--protocol", "quick-lok"),
            "there is no protocol 'quick-lok' (a file of your own ends in .yaml); did you",
        ),
        (("recipe.yaml", "--protocol", "coco-30k"), "evaluate.prompt_files: a file with captions of MS-COCO val2014"),
        (("miniature", "--protocol", "prompt-set"), "the protocol prompt-set needs what is not given"),
        (("miniature", "-p", "a.txt", "-s", "distill.steps=3"), "-s takes settings of evaluate only, and got distill"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    recipe: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert recipe == "recipe.yaml"
    assert message in refused(capsys, *arguments)


def test_the_help_lists_every_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    words = " ".join(text.replace("│", " ").split())
    for name in protocol_names():
        assert f"{name}: {load_protocol(name).description}" in words
