from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from condistill import cli


def fails_with(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit code and the error output of a command."""
    with pytest.raises(SystemExit) as exited:
        cli.main(arguments)
    return int(exited.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "recipe.yaml", "--out", "run\udcff"),
        ("run", "rec\udcffipe.yaml"),
        ("sample", "miniature", "a star", "-o", "\udcff.png"),
        ("init", "t\udcff", "--prompts", "a.txt"),
        ("sweep", "recipe.yaml", "--grid", "seed=[\udc80]"),
        ("plan", "recipe.yaml", "-s", "teacher.pipeline=\udcff"),
    ],
)
def test_an_argument_that_is_not_utf8_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = fails_with(capsys, *arguments)
    assert code == 2
    assert "is not UTF-8; rename the file" in err
    assert "\\udc" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["\x1b[31mred\x07", "\u202etxt"])
def test_a_hostile_argument_reaches_the_terminal_as_escapes(capsys: pytest.CaptureFixture[str], text: str) -> None:
    for arguments in (
        ("run", f"{text}.yaml"),
        (text,),
        ("run", "a.yaml", f"--{text}"),
        ("sample", "miniature", "", "-o", text),
    ):
        code, err = fails_with(capsys, *arguments)
        assert code in (1, 2)
        assert text not in err
        assert "\\x1b" in err or "\\u202e" in err


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "condistill", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_a_reader_that_ends_is_no_error(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {width: 0.5}\n")
    program = f"{sys.executable} -m condistill validate {recipe} | true"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert "bug" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_output_in_an_encoding_without_the_characters_is_no_error(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = "teacher: {pipeline: miniature}\nprompts: {files: [miniature], unseen_words: [é星]}\nstudent: {width: 0.5}\n"
    recipe.write_text(text, encoding="utf-8")
    done = run_command("validate", str(recipe), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "unseen_words" in done.stdout


@pytest.mark.slow
def test_a_traceback_shows_hostile_text_as_escapes() -> None:
    done = run_command("--debug", "run", "\x1b[2J.yaml")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "\\x1b[2J.yaml" in done.stderr
    assert "\x1b" not in done.stderr
