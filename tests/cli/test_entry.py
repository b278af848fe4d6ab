from __future__ import annotations

import os
import re
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "~nosuchuser/recipe.yaml"),
        ("run", "recipe.yaml", "--out=~nosuchuser/run"),
        ("sample", "miniature", "a star", "--out=~nosuchuser/a.png"),
        ("inspect", "~nosuchuser/x"),
    ],
)
def test_the_home_directory_of_an_unknown_user_is_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, err = fails_with(capsys, *arguments)
    assert code == 1
    assert "~nosuchuser" in err
    assert err.endswith("the home directory of this user is unknown; write the whole path\n")


def test_the_home_directory_is_known_in_every_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _, err = fails_with(capsys, "run", "~/gone.yaml")
    assert f"there is no recipe at {tmp_path}/gone.yaml" in err


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "miniature", "a star", "--seed", "1" + "0" * 40),
        ("sample", "miniature", "a star", "--seed", str(2**63)),
        ("sample", "miniature", "a star", "--steps", "1" + "0" * 40),
        ("sample", "miniature", "a star", "--guidance", "inf"),
        ("sample", "miniature", "a star", "--guidance", "nan"),
        ("plan", "recipe.yaml", "--count", "1" + "0" * 40),
        ("plan", "recipe.yaml", "--efficiency", "nan"),
        ("plan", "recipe.yaml", "--efficiency", "-inf"),
        ("inspect", "miniature", "--levels", "1" + "0" * 40),
        ("sweep", "recipe.yaml", "--seeds", "1" + "0" * 5000),
    ],
)
def test_a_number_that_no_command_can_use_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, err = fails_with(capsys, *arguments)
    assert code in (1, 2)
    assert arguments[-2] in err
    assert "a bug" not in err
    assert len(err) < 500


def test_an_image_with_more_steps_than_the_scheduler_has_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    arguments = ("sample", str(tiny_pipeline_dir), "a star", "--steps", "1001", "--out", str(tmp_path / "a.png"))
    _, err = fails_with(capsys, *arguments)
    assert "DDIMScheduler" in err
    assert "cannot sample with 1001 steps" in err
    assert "its config has 1000 timesteps" in err


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


HOSTILE = "\x1b]0;x\x07\u202e"
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def hostile_commands(folder: Path) -> dict[str, list[str]]:
    """Return commands that meet hostile text in one place each: in names of files, columns, keys, values, prompts."""
    base = "teacher: {pipeline: miniature}\nprompts: {files: [a.txt]}\nstudent: {width: 0.5}\n"
    (folder / "a.txt").write_text("a\nb\n", encoding="utf-8")
    (folder / "c.csv").write_text(f"{HOSTILE}one,{HOSTILE}two\na,b\n", encoding="utf-8")
    (folder / f"{HOSTILE}.txt").write_bytes(b"\xff\n")
    (folder / "other").mkdir()
    (folder / "other" / "model_index.json").write_text(f'{{"_class_name": "{HOSTILE!r}"}}'.replace("'", ""))
    (folder / "recipe.yaml").write_text(base, encoding="utf-8")
    (folder / f"{HOSTILE}.yaml").write_text(base, encoding="utf-8")
    recipe = str(folder / "recipe.yaml")
    changes = {
        "key": f"{HOSTILE}=1",
        "value": f"student.preset={HOSTILE}",
        "escaped value": r'student.preset="\e[2J\u202e"',
        "escaped key": r'evaluate={"\e[2J": 1}',
        "variant": f"variants={{{HOSTILE}: {{}}}}",
        "file": f"prompts.files=[{HOSTILE}.txt]",
        "missing file": f"prompts.files=[gone{HOSTILE[-1]}.txt]",
        "column": f"prompts.column={HOSTILE[-1]}",
        "columns": "prompts.files=[c.csv]",
        "hub name": f"teacher.pipeline={HOSTILE[-1]}x",
        "class": "teacher.pipeline=./other",
        "word": f"prompts.unseen_words=[{HOSTILE[-1]}star]",
    }
    commands = {name: ["validate", recipe, "-s", change] for name, change in changes.items()}
    return commands | {
        "recipe": ["validate", str(folder / f"{HOSTILE}.yaml")],
        "grid": ["sweep", recipe, "--grid", f"{HOSTILE}=[1]"],
        "case": ["sweep", recipe, "--case", f"{HOSTILE}: seed=1"],
        "seeds": ["sweep", recipe, "--seeds", HOSTILE],
        "device": ["plan", recipe, "--device", HOSTILE],
        "image": ["sample", "miniature", HOSTILE, "--out", f"{folder}/{HOSTILE}.txt"],
        "pipeline": ["inspect", f"./{HOSTILE}"],
        "init": ["init", "./other", "--prompts", str(folder / f"{HOSTILE}.txt"), "--out", str(folder / "new.yaml")],
    }


@pytest.mark.slow
def test_no_output_of_a_command_has_raw_hostile_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in hostile_commands(tmp_path).items():
        with pytest.raises(SystemExit):
            cli.main(command)
        output = "".join(capsys.readouterr())
        assert output, name
        assert not RAW.search(output), (name, output)
        assert "a bug" not in output, (name, output)
