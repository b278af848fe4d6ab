"""What happens to a finished run when a setting or a file changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import VARIANTS, Run, flip_a_byte, times

from condistill.errors import CondistillError

pytestmark = pytest.mark.slow  # whole runs
STAGES = ("prompts", "cache", "distill", "evaluation", "pipelines")
REWRITTEN = ("README.md", "sampling.json")


def results(out: Path) -> dict[Path, int]:
    """Return when each result of a run was written; what the report writes every time is left out."""
    return {
        file.relative_to(out): time
        for file, time in times(out).items()
        if file.relative_to(out).parts[0] in STAGES and file.name not in REWRITTEN
    }


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """A finished run with a teacher and prompts that a test may change."""
    own = Run(tmp_path / "project", tmp_path / "project" / "teacher")
    shutil.copytree(run.teacher, own.teacher)
    shutil.move(run.out, own.out)
    own.again()
    return own


def add_a_prompt(run: Run) -> None:
    run.prompts += "one more box\n"


def change(name: str) -> Callable[[Run], None]:
    return lambda run: flip_a_byte(next(run.teacher.glob(name)))


def add_a_line(run: Run) -> None:
    with (run.teacher / "scheduler" / "scheduler_config.json").open("a", encoding="utf-8") as file:
        file.write("\n")


CHANGES = {
    r"prompts.files\[0\] file prompts.txt has changed": add_a_prompt,
    "teacher file unet/diffusion_pytorch_model.safetensors has changed": change("unet/*.safetensors"),
    "teacher file tokenizer/tokenizer.json has changed": change("tokenizer/tokenizer.json"),
    "teacher file scheduler/scheduler_config.json has changed": add_a_line,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_changed_input_stops_the_run_and_is_named_and_nothing_is_touched(own: Run, reason: str) -> None:
    before = times(own.out)
    CHANGES[reason](own)
    with pytest.raises(CondistillError, match=rf"(?s){reason}.*--update would move .*choose another --out"):
        own.again()
    assert times(own.out) == before


def test_files_of_the_teacher_that_are_not_loaded_change_nothing(own: Run, no_teacher: None) -> None:
    before = results(own.out)
    (own.teacher / "notes.txt").write_text("mine")
    (own.teacher / "unet" / "training_state.safetensors").write_bytes(b"mine")
    own.again()
    assert results(own.out) == before


def test_a_project_that_was_moved_is_the_same_run(own: Run, no_teacher: None, tmp_path: Path) -> None:
    before = results(own.out)
    shutil.move(own.folder, tmp_path / "elsewhere")
    moved = Run(tmp_path / "elsewhere", tmp_path / "elsewhere" / "teacher")
    moved.again()
    assert results(moved.out) == before


@pytest.mark.parametrize(
    "setting",
    [
        "distill.micro_batch_size=1",
        "distill.gradient_checkpointing=true",
        "distill.logging.log_every=1",
        "distill.logging.checkpoint_every=2",
        "distill.logging.keep_checkpoints=1",
        "cache.batch_size=1",
        "cache.shard_size=2",
        "evaluate.batch_size=1",
    ],
)
def test_a_setting_that_changes_no_result_needs_no_consent(run: Run, no_teacher: None, setting: str) -> None:
    before = results(run.out)
    run.again(setting)
    assert results(run.out) == before


def test_more_images_in_the_report_are_taken_from_the_latents_that_are_there(run: Run) -> None:
    before = results(run.out)
    run.again("evaluate.grid=2")
    after = results(run.out)
    figures = Path("evaluation") / "figures"
    assert all(after[file] == time for file, time in before.items() if figures not in file.parents)
    assert len(list((run.out / figures / "grid").iterdir())) == 2 * 2 * (1 + len(VARIANTS))


def test_a_new_variant_is_added_without_touching_the_others(run: Run) -> None:
    before = results(run.out)
    run.again("variants.third={student: {width: 0.25}}")
    after = results(run.out)
    figures = Path("evaluation") / "figures"
    assert all(after[file] == time for file, time in before.items() if figures not in file.parents)
    models = json.loads((run.out / "metrics.json").read_text(encoding="utf-8"))["models"]
    assert set(models) == {"teacher", *VARIANTS, "third"}


def test_update_moves_what_it_replaces_and_keeps_the_rest(run: Run) -> None:
    kept = {part: times(run.out / part) for part in ("prompts", "cache")}
    old = (run.out / "pipelines" / "plain" / "unet" / "config.json").read_bytes()
    run.again("student.width=0.25", update=True)
    assert {part: times(run.out / part) for part in kept} == kept
    (moved,) = (run.out / "old").iterdir()
    assert (moved / "pipelines" / "plain" / "unet" / "config.json").read_bytes() == old
    assert (moved / "distill" / "plain" / "checkpoints" / "history.jsonl").is_file()
    assert (moved / "evaluation" / "figures" / "metrics.json").is_file()
    assert f"moved {run.out / 'pipelines' / 'plain'} to {moved / 'pipelines' / 'plain'}\n" in run.printed
    assert "  student.width was 0.5 and is now 0.25\n" in run.printed


def test_a_smaller_micro_batch_continues_an_interrupted_training(run: Run) -> None:
    """The advice of an out-of-memory error can be followed: nothing that was trained is lost."""
    checkpoints = run.out / "distill" / "plain" / "checkpoints"
    before = (run.out / "pipelines" / "plain" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree(checkpoints / "step-00000006")
    shutil.rmtree(run.out / "pipelines" / "plain")
    run.again("distill.micro_batch_size=1", until="distill")
    after = (run.out / "pipelines" / "plain" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert len(after) == len(before)
    assert (checkpoints / "step-00000003").is_dir()  # it was not trained from the start
    assert "plain: done already" not in run.printed


def test_more_steps_continue_from_the_newest_checkpoint(run: Run, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    with pytest.raises(CondistillError, match="distill/plain continues from its newest checkpoint"):
        run.again("distill.steps=9")
    run.again("distill.steps=9", until="distill", update=True)
    at_once = Run(tmp_path / "at once", tiny_pipeline_dir)
    at_once.folder.mkdir()
    at_once.again("distill.steps=9", until="distill")
    assert len(list((run.out / "old").glob("*/pipelines/plain/unet"))) == 1
    assert not list((run.out / "old").glob("*/distill"))
    for name in VARIANTS:
        weights = Path("pipelines") / name / "unet" / "diffusion_pytorch_model.safetensors"
        assert (run.out / weights).read_bytes() == (at_once.out / weights).read_bytes()
        losses = Path("distill") / name / "checkpoints" / "history.jsonl"
        assert (run.out / losses).read_bytes() == (at_once.out / losses).read_bytes()


def test_another_dtype_of_the_files_saves_the_students_again_without_training(run: Run) -> None:
    losses = times(run.out / "distill" / "plain" / "checkpoints" / "step-00000006")
    run.again("distill.save_dtype=float16", until="distill", update=True)
    weights = run.out / "pipelines" / "plain" / "unet" / "diffusion_pytorch_model.safetensors"
    (old,) = (run.out / "old").glob("*/pipelines/plain/unet/diffusion_pytorch_model.safetensors")
    assert weights.stat().st_size < 0.6 * old.stat().st_size
    assert times(run.out / "distill" / "plain" / "checkpoints" / "step-00000006") == losses
