from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
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
from condistill.cli import doctor, entry
from condistill.cli import texts as cli_texts
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.pipelines.sampling import SAMPLING_NAME, Sampling

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = sorted(GROUP.commands)
EXAMPLES = [(name, line) for name, lines in cli_texts.EXAMPLES.items() for line in lines]
INTERRUPTED = "interrupted; finished work is kept: run the same command again to resume"


class Result(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process; return its exit code and its output."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main([str(argument) for argument in arguments])
        return Result(int(exited.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def recipe(tmp_path: Path, tiny_pipeline_dir: Path) -> Path:
    """A recipe with 6 images and one student, in the directory of its prompt file."""
    (tmp_path / "prompts.txt").write_text("".join(f"a {word} ball\n" for word in "abcdefgh"), encoding="utf-8")
    data = {
        "teacher": {"pipeline": str(tiny_pipeline_dir)},
        "prompts": {"files": ["prompts.txt"]},
        "cache": {"size": 6, "num_inference_steps": 1, "batch_size": 6, "shard_size": 3},
        "student": {"width": 0.5},
        "distill": {"steps": 2, "batch_size": 2, "preview_every": 0},
        "evaluate": {"prompts_per_split": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def assert_error(result: Result, *parts: str, code: int = 1) -> None:
    """Check that the command failed with an error message that contains `parts`, and without a traceback."""
    assert result.code == code
    assert re.search("^error: ", result.err, re.MULTILINE)
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err
    for part in parts:
        assert part in result.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_an_example(call: Call, name: str) -> None:
    result = call(name, "--help")
    assert result.code == 0
    examples = result.out.partition("Examples")[2]
    assert examples.count(f"• condistill {name}") == len(cli_texts.EXAMPLES[name])  # one line each


def test_every_command_has_examples() -> None:
    assert set(cli_texts.EXAMPLES) == set(COMMANDS)
    assert len(COMMANDS) == 18


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_every_example_is_a_valid_command(name: str, line: str) -> None:
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("condistill", name)
    with GROUP.commands[name].make_context(name, arguments) as context:
        assert context.args == []


def test_the_help_names_every_command_and_debug(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    assert all(name in result.out for name in [*COMMANDS, "--debug", "--version"])


def test_the_help_is_shown_without_a_command(call: Call) -> None:
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
        "except SystemExit as exited:\n    assert not exited.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'pyarrow', 'matplotlib', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["no-such-command"], "no-such-command"),
        (["run"], "Missing argument"),
        (["run", "recipe.yaml", "--no-such-option"], "--no-such-option"),
        (["sample", "miniature", "a star", "--seed", "many"], "--seed"),
        (["sample", "miniature", "a star", "--steps", "0"], "--steps"),
        (["init", "teacher"], "--prompts"),
    ],
)
def test_a_wrong_command_line_names_the_mistake_and_the_help(call: Call, arguments: list[str], wrong: str) -> None:
    assert_error(call(*arguments), wrong, "see `condistill", "--help`", code=2)


@pytest.mark.parametrize("arguments", [["--debug", "run", "gone.yaml"], ["run", "gone.yaml", "--debug"]])
def test_debug_shows_the_traceback_before_and_after_the_command(arguments: list[str]) -> None:
    with pytest.raises(CondistillError, match="there is no recipe at gone"):
        cli.main(arguments)


def test_arguments_after_two_dashes_are_not_options() -> None:
    assert entry._split_debug(["sample", "p", "--", "--debug"]) == (["sample", "p", "--", "--debug"], False)
    assert entry._split_debug(["--debug", "sample", "--", "--debug"]) == (["sample", "--", "--debug"], True)


def test_validate_prints_the_resolved_recipe_and_writes_nothing(call: Call, recipe: Path) -> None:
    before = set(recipe.parent.iterdir())
    result = call("validate", recipe, "-s", "distill.steps=3")
    assert result.code == 0
    shown = Recipe.parse(result.out)
    assert (shown.distill.steps, shown.distill.optimizer.learning_rate, shown.cache.size) == (3, 5e-5, 6)
    assert "where students load:\n- random_conditioning: diffusers\n- not ComfyUI: random_conditioning: " in result.err
    assert "is valid; the family of the teacher is stable_diffusion" in result.err
    assert set(recipe.parent.iterdir()) == before


def test_plan_prints_only_json_on_stdout(call: Call, recipe: Path) -> None:
    before = set(recipe.parent.iterdir())
    result = call("plan", recipe, "--device", "a100-80gb", "--json", "-s", "distill.steps=7")
    assert (result.code, result.err) == (0, "")
    plan = json.loads(result.out)
    assert plan["cost"]["training"]["random_conditioning"]["steps"] == 7
    assert plan["teacher"]["params"] > plan["students"][0]["params"] > 0
    assert set(recipe.parent.iterdir()) == before


@pytest.mark.slow
def test_plan_shows_its_assumptions(call: Call, recipe: Path) -> None:
    result = call("plan", recipe, "--device", "l4", "--count", 2, "--budget", "48h")
    assert result.code == 0
    assert all(text in result.out for text in ("b-base", "training on 2 x l4", "activations", "assumed:"))
    shown = ("steps in 2.00 days", "peak of memory of each process", "disk:", "where students load:", ": diffusers")
    assert all(text in result.out for text in shown)


def test_plan_names_the_known_devices_when_it_does_not_know_one(call: Call, recipe: Path) -> None:
    assert_error(
        call("plan", recipe, "--device", "a100"), "the device 'a100' is not known", "a100-40gb, a100-80gb, h100"
    )
    assert_error(call("plan", recipe, "--device", "l4", "--measure"), "--measure times the present device only")


@pytest.mark.parametrize("stage", ["run", "prompts", "cache", "distill", "evaluate", "report"])
def test_a_dry_run_prints_the_recipe_and_the_plan_and_writes_nothing(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    plan = importlib.import_module("condistill.plan")
    monkeypatch.setattr(plan, "make_plan", lambda recipe: {"steps": recipe.distill.steps})
    monkeypatch.setattr(plan, "show_plan", lambda plan, console: console.print(f"plan of {plan['steps']} steps"))
    before = set(tmp_path.rglob("*"))
    result = call(stage, recipe, "--dry-run", "-o", tmp_path / "run", "-s", "distill.steps=3")
    assert result.code == 0
    assert Recipe.parse(result.out).distill.steps == 3
    assert "plan of 3 steps" in result.err
    assert "nothing was written" in result.err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_dry_run_computes_a_real_plan(call: Call, recipe: Path, tmp_path: Path) -> None:
    result = call("distill", recipe, "--dry-run", "-o", tmp_path / "run")
    assert result.code == 0
    assert "memory: activations" in result.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_cannot_verify_the_cache(call: Call, recipe: Path) -> None:
    assert_error(call("cache", recipe, "--dry-run", "--verify"), "use only one of them")


@pytest.mark.slow
def test_inspect_shows_layers_and_the_layers_that_presets_keep(call: Call, tiny_pipeline_dir: Path) -> None:
    result = call("inspect", tiny_pipeline_dir, "--levels", 1)
    assert (result.code, result.err) == (0, "")
    assert all(text in result.out for text in ("UNet2DConditionModel", "down_blocks.0", "compared:", "b-base keeps"))
    assert "resnets" not in result.out.partition("b-base")[0]
    assert "resnets" in call("inspect", tiny_pipeline_dir).out.partition("b-base")[0]


def test_init_writes_a_valid_recipe_and_never_overwrites_one(
    call: Call, recipe: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.yaml"
    arguments = ("init", tiny_pipeline_dir, "--prompts", tmp_path / "prompts.txt", "--out", out)
    result = call(*arguments)
    assert result.code == 0
    assert f"condistill run {out}" in result.err
    assert "prompts.txt: the first prompt is 'a a ball'" in result.err
    assert call("validate", out).code == 0
    written = out.read_text(encoding="utf-8")
    assert_error(call(*arguments), f"{out} exists already and is not overwritten; choose another --out")
    assert out.read_text(encoding="utf-8") == written


def test_sample_generates_the_same_image_for_the_same_seed(call: Call, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    images = []
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        out = tmp_path / name
        result = call("sample", tiny_pipeline_dir, "a ball", "--out", out, "--steps", 1, "--seed", seed)
        assert (result.code, result.out, result.err) == (0, "", f"wrote {out}\n")
        with Image.open(out) as image:
            assert image.size == (64, 64)
            images.append(image.tobytes())
    assert images[0] == images[1]
    assert images[0] != images[2]


def test_sample_uses_the_resolution_of_the_student(call: Call, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    student, out = tmp_path / "student", tmp_path / "ball.png"
    shutil.copytree(tiny_pipeline_dir, student)
    sampling = Sampling(num_inference_steps=1, guidance_scale=1.0, resolution=32).to_json()
    (student / SAMPLING_NAME).write_text(sampling, encoding="utf-8")
    assert call("sample", student, "a ball", "--out", out).code == 0
    with Image.open(out) as image:
        assert image.size == (32, 32)


@pytest.mark.slow
def test_a_wrong_variant_is_named_by_every_command(
    call: Call, recipe: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher"))
    for file in [*teacher.rglob("*.safetensors")]:
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    message = "teacher.variant 'bf16': no component of"
    remedy = "there are files of 'fp16'; set it to fp16, or leave it out"
    for arguments in (
        ("sample", teacher, "a ball", "--variant", "bf16"),
        ("inspect", teacher, "--variant", "bf16"),
        *((command, recipe, "-s", f"teacher.pipeline={teacher}", "-s", "teacher.variant=bf16") for command in NAMING),
    ):
        assert_error(call(*arguments), message, remedy)
    assert call("inspect", teacher, "--variant", "fp16").code == 0
    assert call("inspect", teacher).code == 0
    assert not (tmp_path / "runs").exists()


NAMING = ("validate", "plan", "run", "prompts")


def test_sample_refuses_an_unknown_image_format_and_an_empty_pipeline_name(call: Call, tiny_pipeline_dir: Path) -> None:
    assert_error(call("sample", tiny_pipeline_dir, "a ball", "--out", "ball.txt"), "--out ball.txt", ".png, .jpg")
    for arguments in (("sample", "", "a ball"), ("inspect", " ")):
        assert_error(call(*arguments), "the name of the pipeline is empty")


def test_sample_generates_images_of_few_step_students(call: Call, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    from diffusers import LCMScheduler

    student, out = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "student")), tmp_path / "ball.png"
    LCMScheduler(original_inference_steps=10).save_pretrained(student / "scheduler")
    index = json.loads((student / "model_index.json").read_text())
    (student / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "LCMScheduler"]}))
    (student / SAMPLING_NAME).write_text(Sampling(2, 1.0).to_json(), encoding="utf-8")
    assert call("sample", student, "a ball", "--out", out).code == 0
    with Image.open(out) as image:
        assert image.size == (64, 64)


def test_sample_names_the_config_that_is_damaged(call: Call, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher"))
    (damaged / "unet" / "config.json").write_text("3")
    assert_error(call("sample", damaged, "a ball", "--out", tmp_path / "a.png"), "unet/config.json cannot be used")


@pytest.mark.parametrize("can_run", [True, False])
def test_doctor_fails_if_condistill_cannot_run(call: Call, monkeypatch: pytest.MonkeyPatch, can_run: bool) -> None:
    monkeypatch.setattr(doctor, "check_installation", lambda _: can_run)
    assert call("doctor").code == (0 if can_run else 1)


def test_an_unknown_key_names_the_nearest_one(call: Call, recipe: Path) -> None:
    assert_error(call("run", recipe, "-s", "distill.stpes=3"), "distill.stpes is not a setting; did you mean 'steps'?")


def test_all_mistakes_of_a_recipe_are_listed_at_once(call: Call, recipe: Path) -> None:
    data = json.loads(recipe.read_text(encoding="utf-8"))
    data["distill"] |= {"steps": "many", "optimizer": {"learning_rate": -1.0}}
    data["cache"]["size"] = -1
    recipe.write_text(json.dumps(data, indent=1), encoding="utf-8")
    result = call("run", recipe)
    assert_error(
        result, "has 3 mistake(s)", "distill.steps", "(given: 'many')", "distill.optimizer.learning_rate", "cache.size"
    )
    assert result.err.count("line ") == 3


def test_a_missing_recipe_or_teacher_is_named(call: Call, recipe: Path) -> None:
    assert_error(call("run", recipe.with_name("gone.yaml")), "there is no recipe at", "`condistill init` writes one")
    assert_error(call("run", recipe, "-s", "teacher.pipeline=./gone"), "does not exist", "gone")


def test_a_teacher_with_only_pickle_weights_is_refused(call: Call, recipe: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "pickled"
    (teacher / "unet").mkdir(parents=True)
    (teacher / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (teacher / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    assert_error(
        call("run", recipe, "-s", "teacher.pipeline=./pickled"),
        "has only pickle weights for unet",
        "safe_serialization=True",
    )


@pytest.mark.slow
def test_a_prompt_file_without_prompts_is_refused(call: Call, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n  \n", encoding="utf-8")
    assert_error(call("run", recipe, "-o", tmp_path / "run"), "there are no prompts in prompts.txt (2 empty ones)")


def test_a_prompt_file_that_is_not_utf8_is_refused(call: Call, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("a ball\nein Fuß\n".encode("latin-1"))
    assert_error(call("run", recipe, "-o", tmp_path / "run"), "is not UTF-8: byte 13, on line 2; save it as UTF-8")


def test_a_parquet_file_without_the_column_lists_its_columns(call: Call, recipe: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"TEXT": ["a"], "url": ["b"]}), tmp_path / "prompts.parquet")
    settings = ("-s", "prompts.files=[prompts.parquet]", "-s", "prompts.column=caption")
    assert_error(call("validate", recipe, *settings), "has no column 'caption'", "TEXT, url")


@pytest.mark.slow
def test_a_run_directory_with_another_recipe_is_refused(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert call("prompts", recipe, *out).code == 0
    assert_error(
        call("prompts", recipe, *out, "-s", "seed=1"), "results of other inputs", "seed was 0 and is now 1", "--update"
    )
    assert call("prompts", recipe, *out, "-s", "seed=1", "--update").code == 0


def test_a_directory_that_is_not_a_run_is_left_unchanged(call: Call, recipe: Path, tmp_path: Path) -> None:
    assert_error(call("run", recipe, "--out", tmp_path), "is not empty and holds no run", "choose another --out")


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_generated_again(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    assert "matches its checksum (6 latents)" in call("cache", recipe, *out, "--verify").err
    shard = tmp_path / "run" / "cache" / "shard-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = call("cache", recipe, *out, "--verify")
    assert result.code == 0
    assert f"{shard} is damaged or was edited; it is made again\n" in result.err
    assert "matches its checksum (6 latents)" in result.err


def write_to_full_disk(kind: str, tmp_path: Path) -> None:
    """Write to a device that is always full, or raise the error that a library raises for a full disk."""
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
def test_a_full_disk_is_reported_for_every_library(
    call: Call, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kind: str, wrapped: bool
) -> None:
    if kind in ("text", "arrow") and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def write(*_: Any, **__: Any) -> None:
        try:
            write_to_full_disk(kind, tmp_path)
        except Exception as error:
            if wrapped:
                raise CondistillError("the pipeline cannot be used") from error
            raise

    monkeypatch.setattr(importlib.import_module("condistill.workflow.compress"), "compress", write)
    assert_error(call("run", recipe), "the disk is full", "free some space, then run the same command again to resume")
    assert not (tmp_path / "target.arrow").exists()


def test_a_folder_that_cannot_be_written_is_named(
    call: Call, recipe: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    out = tmp_path / "file" / "a.png"
    assert_error(call("sample", tiny_pipeline_dir, "a ball", "--steps", "1", "--out", out), str(tmp_path / "file"))


def test_a_bug_is_reported_in_one_line(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr(importlib.import_module("condistill.workflow.compress"), "compress", fail)
    result = call("run", recipe)
    message = "unexpected ZeroDivisionError: by zero (a bug in condistill: run with --debug for the traceback)"
    assert (result.code, result.err) == (1, f"error: {message}\n")
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", str(recipe), "--debug"])


@pytest.mark.parametrize("raised", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_explains_how_to_resume(
    call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(importlib.import_module("condistill.workflow.compress"), "compress", stop)
    result = call("run", recipe)
    assert (result.code, result.err) == (130, f"{INTERRUPTED}\n")


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
    assert (done.returncode, done.stderr) == (130, f"{INTERRUPTED}\n")
