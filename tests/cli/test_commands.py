from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image

from condistill import __version__, cli
from condistill.cache.latents import write_shard
from condistill.cli import commands, doctor
from condistill.cli import texts as cli_texts
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.pipelines.sampling import SAMPLING_NAME, Sampling

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = sorted(GROUP.commands)
EXAMPLES = [(name, line) for name, lines in cli_texts.EXAMPLES.items() for line in lines]
STOPPED = "stopped; what is finished is kept: run the same command again to go on"


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process: its exit code and what it printed."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return Result(int(left.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def recipe(tmp_path: Path, tiny_pipeline_dir: Path) -> Path:
    """A recipe of 6 images and one student, with its prompts beside it."""
    (tmp_path / "prompts.txt").write_text("".join(f"a {word} ball\n" for word in "abcdefgh"), encoding="utf-8")
    data = {
        "teacher": {"pipeline": str(tiny_pipeline_dir)},
        "prompts": {"files": ["prompts.txt"]},
        "cache": {"size": 6, "num_inference_steps": 1, "batch_size": 6, "shard_size": 3},
        "student": {"width": 0.5},
        "distill": {"steps": 2, "batch_size": 2},
        "evaluate": {"prompts_per_split": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def refused(result: Result, *told: str, code: int = 1) -> None:
    """The command failed in one readable message, and no traceback."""
    assert result.code == code
    assert re.search("^error: ", result.err, re.MULTILINE)
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err
    for part in told:
        assert part in result.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_an_example(call: Call, name: str) -> None:
    result = call(name, "--help")
    assert result.code == 0
    examples = result.out.partition("Examples")[2]
    assert examples.count(f"• condistill {name}") == len(cli_texts.EXAMPLES[name])  # each on a line of its own


def test_every_command_has_examples() -> None:
    assert set(cli_texts.EXAMPLES) == set(COMMANDS)
    assert len(COMMANDS) == 14


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_is_a_command_that_is_understood(name: str, line: str) -> None:
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("condistill", name)
    with GROUP.commands[name].make_context(name, arguments) as context:
        assert context.args == []


def test_the_help_names_every_command_and_debug(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    assert all(name in result.out for name in [*COMMANDS, "--debug", "--version"])


def test_no_command_shows_the_help(call: Call) -> None:
    result = call()
    assert result.code == 2
    assert "Usage: condistill" in result.out
    assert result.err == ""


def test_the_version_is_shown(call: Call) -> None:
    result = call("--version")
    assert (result.code, result.out) == (0, f"condistill {__version__}\n")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from condistill.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as left:\n    assert not left.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'pyarrow', 'matplotlib', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such-command"], "no-such-command"),
        (["run"], "Missing argument"),
        (["run", "recipe.yaml", "--no-such-option"], "--no-such-option"),
        (["sample", "miniature", "a star", "--seed", "many"], "--seed"),
        (["sample", "miniature", "a star", "--steps", "0"], "--steps"),
        (["init", "teacher"], "--prompts"),
    ],
)
def test_a_wrong_command_line_names_what_is_wrong_and_the_help(call: Call, arguments: list[str], told: str) -> None:
    refused(call(*arguments), told, "--help` shows how it is used", code=2)


@pytest.mark.parametrize("arguments", [["--debug", "run", "gone.yaml"], ["run", "gone.yaml", "--debug"]])
def test_debug_shows_the_traceback_before_and_after_the_command(arguments: list[str]) -> None:
    with pytest.raises(CondistillError, match="there is no recipe at gone"):
        cli.main(arguments)


def test_what_follows_two_dashes_is_no_option() -> None:
    assert commands._split_debug(["sample", "p", "--", "--debug"]) == (["sample", "p", "--", "--debug"], False)
    assert commands._split_debug(["--debug", "sample", "--", "--debug"]) == (["sample", "--", "--debug"], True)


def test_validate_prints_the_resolved_recipe_and_writes_nothing(call: Call, recipe: Path) -> None:
    before = set(recipe.parent.iterdir())
    result = call("validate", recipe, "-s", "distill.steps=3")
    assert result.code == 0
    shown = Recipe.parse(result.out)
    assert (shown.distill.steps, shown.distill.optimizer.learning_rate, shown.cache.size) == (3, 5e-5, 6)
    assert "is valid; the teacher is of family stable_diffusion" in result.err
    assert set(recipe.parent.iterdir()) == before


def test_plan_prints_data_on_stdout_and_nothing_else(call: Call, recipe: Path) -> None:
    before = set(recipe.parent.iterdir())
    result = call("plan", recipe, "--device", "a100-80gb", "--json", "-s", "distill.steps=7")
    assert (result.code, result.err) == (0, "")
    plan = json.loads(result.out)
    assert plan["cost"]["training"]["random_conditioning"]["steps"] == 7
    assert plan["teacher"]["params"] > plan["students"][0]["params"] > 0
    assert set(recipe.parent.iterdir()) == before


@pytest.mark.slow
def test_plan_tells_what_it_assumes_for_people(call: Call, recipe: Path) -> None:
    result = call("plan", recipe, "--device", "l4", "--count", 2)
    assert result.code == 0
    assert all(told in result.out for told in ("b-base", "training on 2 x l4", "activations", "assumed:"))


def test_plan_of_an_unknown_device_names_all_that_are_known(call: Call, recipe: Path) -> None:
    refused(call("plan", recipe, "--device", "a100"), "the device 'a100' is not known", "a100-40gb, a100-80gb, h100")
    refused(call("plan", recipe, "--device", "l4", "--measure"), "--measure times the present device alone")


@pytest.mark.parametrize("stage", ["run", "prompts", "cache", "distill", "evaluate", "report"])
def test_a_dry_run_prints_recipe_and_plan_and_writes_nothing(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    plan = importlib.import_module("condistill.plan")
    monkeypatch.setattr(plan, "make_plan", lambda recipe: {"of": recipe.distill.steps})
    monkeypatch.setattr(plan, "show_plan", lambda made, console: console.print(f"the plan of {made['of']} steps"))
    before = set(tmp_path.rglob("*"))
    result = call(stage, recipe, "--dry-run", "-o", tmp_path / "run", "-s", "distill.steps=3")
    assert result.code == 0
    assert Recipe.parse(result.out).distill.steps == 3
    assert "the plan of 3 steps" in result.err
    assert "nothing was written" in result.err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_dry_run_plans_for_real(call: Call, recipe: Path, tmp_path: Path) -> None:
    result = call("distill", recipe, "--dry-run", "-o", tmp_path / "run")
    assert result.code == 0
    assert "memory: activations" in result.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_verifies_nothing_and_says_so(call: Call, recipe: Path) -> None:
    refused(call("cache", recipe, "--dry-run", "--verify"), "give one of the two")


@pytest.mark.slow
def test_inspect_shows_layers_and_what_presets_keep(call: Call, tiny_pipeline_dir: Path) -> None:
    result = call("inspect", tiny_pipeline_dir, "--levels", 1)
    assert (result.code, result.err) == (0, "")
    assert all(told in result.out for told in ("UNet2DConditionModel", "down_blocks.0", "compared:", "b-base keeps"))
    assert "resnets" not in result.out.partition("b-base")[0]
    assert "resnets" in call("inspect", tiny_pipeline_dir).out.partition("b-base")[0]


def test_init_writes_a_recipe_that_validates_and_never_overwrites(
    call: Call, recipe: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.yaml"
    arguments = ("init", tiny_pipeline_dir, "--prompts", tmp_path / "prompts.txt", "--out", out)
    result = call(*arguments)
    assert result.code == 0
    assert f"condistill run {out}" in result.err
    assert call("validate", out).code == 0
    written = out.read_text(encoding="utf-8")
    refused(call(*arguments), f"{out} is there already; choose another --out")
    assert out.read_text(encoding="utf-8") == written


@pytest.mark.parametrize(
    ("pipeline", "chosen"),
    [
        ("StableDiffusionXLPipeline", ("b-base", None, None)),
        ("PixArtSigmaPipeline", (None, 0.5, None)),
        ("FluxPipeline", (None, 0.5, (1.5, 5.0))),
    ],
)
def test_init_writes_a_student_that_can_be_made_of_the_teacher(
    call: Call, recipe: Path, tmp_path: Path, pipeline: str, chosen: tuple[Any, ...]
) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    out = tmp_path / "new.yaml"
    assert call("init", tmp_path / "teacher", "--prompts", recipe.parent / "prompts.txt", "--out", out).code == 0
    written = Recipe.load(out)
    assert (written.student.preset, written.student.depth, written.distill.guidance_distillation) == chosen


def test_sample_draws_the_same_picture_for_the_same_seed(call: Call, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        out = tmp_path / name
        result = call("sample", tiny_pipeline_dir, "a ball", "--out", out, "--steps", 1, "--seed", seed)
        assert (result.code, result.out, result.err) == (0, "", f"wrote {out}\n")
        with Image.open(out) as picture:
            assert picture.size == (64, 64)
            drawn.append(picture.tobytes())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_student_of_another_resolution_is_drawn_in_it(call: Call, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    student, out = tmp_path / "student", tmp_path / "ball.png"
    shutil.copytree(tiny_pipeline_dir, student)
    said = Sampling(num_inference_steps=1, guidance_scale=1.0, resolution=32).to_json()
    (student / SAMPLING_NAME).write_text(said, encoding="utf-8")
    assert call("sample", student, "a ball", "--out", out).code == 0
    with Image.open(out) as picture:
        assert picture.size == (32, 32)


def test_sample_tells_what_it_cannot_use(call: Call, tiny_pipeline_dir: Path) -> None:
    refused(call("sample", tiny_pipeline_dir, "a ball", "--out", "ball.txt"), "--out ball.txt", ".png, .jpg")
    refused(call("sample", "", "a ball"), "the name of the pipeline is empty")


@pytest.mark.parametrize("well", [True, False])
def test_doctor_fails_where_something_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch, well: bool) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: well)
    assert call("doctor").code == (0 if well else 1)


def test_an_unknown_key_names_the_nearest_one(call: Call, recipe: Path) -> None:
    refused(call("run", recipe, "-s", "distill.stpes=3"), "distill.stpes is not a setting; did you mean 'steps'?")


def test_all_mistakes_of_a_recipe_are_told_at_once(call: Call, recipe: Path) -> None:
    data = json.loads(recipe.read_text(encoding="utf-8"))
    data["distill"] |= {"steps": "many", "optimizer": {"learning_rate": -1.0}}
    data["cache"]["size"] = -1
    recipe.write_text(json.dumps(data, indent=1), encoding="utf-8")
    result = call("run", recipe)
    refused(
        result, "has 3 mistake(s)", "distill.steps", "(given: 'many')", "distill.optimizer.learning_rate", "cache.size"
    )
    assert result.err.count("line ") == 3


def test_a_missing_recipe_or_teacher_is_told(call: Call, recipe: Path) -> None:
    refused(call("run", recipe.with_name("gone.yaml")), "there is no recipe at", "`condistill init` writes one")
    refused(call("run", recipe, "-s", "teacher.pipeline=./gone"), "does not exist", "gone")


def test_a_teacher_with_pickles_only_is_refused(call: Call, recipe: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "pickled"
    (teacher / "unet").mkdir(parents=True)
    (teacher / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (teacher / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    refused(
        call("run", recipe, "-s", "teacher.pipeline=./pickled"),
        "has only pickle weights for unet",
        "safe_serialization=True",
    )


def test_an_empty_prompts_file_is_told(call: Call, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n  \n", encoding="utf-8")
    refused(call("run", recipe, "-o", tmp_path / "run"), "there are no prompts in prompts.txt; 2 were blank")


def test_a_prompts_file_that_is_not_utf8_is_told(call: Call, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("a ball\nein Fuß\n".encode("latin-1"))
    refused(call("run", recipe, "-o", tmp_path / "run"), "is not UTF-8: byte 13, on line 2; save it as UTF-8")


def test_a_parquet_without_the_column_lists_its_columns(call: Call, recipe: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"TEXT": ["a"], "url": ["b"]}), tmp_path / "prompts.parquet")
    settings = ("-s", "prompts.files=[prompts.parquet]", "-s", "prompts.column=caption")
    refused(call("validate", recipe, *settings), "has no column 'caption'", "TEXT, url")


def test_a_run_of_another_recipe_is_refused(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert call("prompts", recipe, *out).code == 0
    refused(call("prompts", recipe, *out, "-s", "seed=1"), "another recipe (it differs in seed)", "--update")
    assert call("prompts", recipe, *out, "-s", "seed=1", "--update").code == 0


def test_a_directory_that_is_no_run_is_left_alone(call: Call, recipe: Path, tmp_path: Path) -> None:
    refused(call("run", recipe, "--out", tmp_path), "is not empty and holds no run", "choose another --out")


@pytest.mark.slow
def test_a_corrupt_shard_is_found_by_verify_and_by_distill(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert "is as it was written (6 latents)" in call("cache", recipe, *out, "--verify").err
    shard = tmp_path / "run" / "cache" / "shard-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    told = (f"the cache shard {shard} is corrupt", "delete it and run `condistill cache` again")
    refused(call("cache", recipe, *out, "--verify"), *told)
    refused(call("distill", recipe, *out), *told)
    shard.unlink()
    assert call("cache", recipe, *out, "--verify").code == 0


def full(kind: str, tmp_path: Path) -> None:
    """Write to a device that is always full, as each library does; or fail in the library's words."""
    if kind == "safetensors":
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    if kind == "quota":
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    target = tmp_path / "target.arrow"
    (tmp_path / ".target.arrow.partial").symlink_to("/dev/full")
    if kind == "text":
        from condistill.utils.atomic import write_text

        write_text(target, "x" * 100_000)
    else:
        import numpy as np

        write_shard(target, np.zeros((64, 4, 8, 8), np.float16), ["x"] * 64)


@pytest.mark.parametrize("kind", ["text", "arrow", "safetensors", "quota"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_told_whichever_library_meets_it(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kind: str, wrapped: bool
) -> None:
    if kind in ("text", "arrow") and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def write(*_: Any, **__: Any) -> None:
        try:
            full(kind, tmp_path)
        except Exception as error:
            if wrapped:
                raise CondistillError("the pipeline cannot be used") from error
            raise

    monkeypatch.setattr(importlib.import_module("condistill.workflow.compress"), "compress", write)
    refused(call("run", recipe), "no space is left on the disk; free some and run the same command again to go on")
    assert not (tmp_path / "target.arrow").exists()


def test_a_folder_that_cannot_be_written_is_told(
    call: Call, recipe: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    out = tmp_path / "file" / "a.png"
    refused(call("sample", tiny_pipeline_dir, "a ball", "--steps", "1", "--out", out), str(tmp_path / "file"))


def test_a_bug_is_told_in_one_line(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr(importlib.import_module("condistill.workflow.compress"), "compress", fail)
    result = call("run", recipe)
    told = "error: unexpected: ZeroDivisionError: by zero (a bug: run with --debug for the traceback)\n"
    assert (result.code, result.err) == (1, told)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", str(recipe), "--debug"])


@pytest.mark.parametrize("raised", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_says_how_to_go_on(
    call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(importlib.import_module("condistill.workflow.compress"), "compress", stop)
    result = call("run", recipe)
    assert (result.code, result.err) == (130, f"{STOPPED}\n")


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_the_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    import kill

    recipe, out = kill.prepare(tmp_path), tmp_path / "stopped"
    kill.run_in_peace(recipe, tmp_path / "peaceful")
    process = kill.start(recipe, out)
    checkpoints = out / "distill" / "plain" / "checkpoints"
    assert any(list(checkpoints.glob("step-*")) for _ in kill.progress(process, out))
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    told = kill.log_of(out).read_text(encoding="utf-8")
    assert told.endswith(f"{STOPPED}\n")
    assert "Traceback" not in told
    assert list(checkpoints.glob("step-*"))
    kill.finish(kill.start(recipe, out), out)
    assert kill.differences(out, tmp_path / "peaceful") == []


def test_ctrl_c_while_libraries_are_imported_leaves_no_traceback(recipe: Path) -> None:
    code = (
        "import os, signal, sys, threading\n"
        "from condistill.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'condistill.workflow.compress':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"main(['run', {os.fspath(recipe)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, f"{STOPPED}\n")
