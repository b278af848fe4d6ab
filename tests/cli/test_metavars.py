from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from condistill import cli
from condistill.cli.metavars import metavar_of

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = [GROUP, *GROUP.commands.values()]
NAMES = ["condistill", *GROUP.commands]


def parameters(command: Any) -> list[Any]:
    return list(command.get_params(command.make_context(command.name, [], resilient_parsing=True)))


def help_of(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main(["--help"] if name == "condistill" else [name, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_no_help_shows_the_name_of_a_python_type(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_of(name, capsys, monkeypatch)
    assert "--help" in shown
    assert re.findall(r"<[a-z]|\blist\[|\{[A-Za-z]|\b(?:int|float|bool|str)\b|BOOLEAN", shown) == []


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_every_value_has_a_word_in_capitals_and_no_flag_has_one(command: Any) -> None:
    for parameter in parameters(command):
        is_flag = getattr(parameter, "is_flag", False)
        assert parameter.metavar is not None, parameter.name
        assert bool(parameter.metavar) is not is_flag, parameter.name
        assert parameter.metavar == parameter.metavar.upper(), parameter.name


def test_the_recipe_of_a_command_is_named_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Usage: condistill run [OPTIONS] RECIPE" in help_of("run", capsys, monkeypatch)


@pytest.mark.parametrize(
    ("name", "annotation", "word"),
    [
        ("verbose", bool, ""),
        ("steps", int | None, "N"),
        ("steps", Annotated[int, typer.Option(min=1)], "N"),
        ("scale", float, "X"),
        ("out", list[Path], "PATH"),
        ("column", str | None, "NAME"),
        ("device", Annotated[str | None, typer.Option(help="a device")], "NAME"),
        ("note", str | None, "TEXT"),
        ("thing", Any, "VALUE"),
    ],
)
def test_a_value_is_called_by_its_name_or_else_by_its_type(name: str, annotation: Any, word: str) -> None:
    assert metavar_of(name, annotation) == word
