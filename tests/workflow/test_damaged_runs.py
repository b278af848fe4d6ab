"""Every kind of file that a run leaves: deleted, truncated, or with a changed byte (docs/reliability.md)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import pytest
from runs import Run, flip_a_byte, times

from condistill.errors import CondistillError

pytestmark = pytest.mark.slow  # whole runs
FAULTS = ("deleted", "truncated", "flipped")


def in_turn(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return every name with one of the faults, which take turns: all pairs would take minutes."""
    return list(zip(names, cycle(FAULTS)))


STUDENT = "pipelines/plain"
TRAINED = (
    "distill/plain/student.json",
    "distill/plain/layers.json",
    "distill/plain/seconds.json",
    "distill/plain/checkpoints/history.jsonl",
)
"""Files of a training that are written again when its student is saved from the newest checkpoint."""
MADE_AGAIN = {
    "prompts/pool.arrow": ("prompts/",),
    "prompts/cached.arrow": ("prompts/",),
    "prompts/is_unseen.npy": ("prompts/",),
    "cache/manifest.json": ("cache/manifest.json",),
    "cache/shard-00001.arrow": ("cache/shard-00001.arrow", "cache/manifest.json"),
    "distill/plain/student.json": (*TRAINED, STUDENT),
    f"{STUDENT}/model_index.json": (*TRAINED, STUDENT),
    f"{STUDENT}/unet/diffusion_pytorch_model.safetensors": (*TRAINED, STUDENT),
    f"{STUDENT}/tokenizer/tokenizer.json": (*TRAINED, STUDENT),
    "evaluation/latents/plain/seed-0/batch-00000.safetensors": ("evaluation/latents/plain", "evaluation/figures"),
    "evaluation/latents/teacher/seed-0/batch-00000.safetensors": ("evaluation/latents/teacher", "evaluation/figures"),
    "evaluation/figures/metrics.json": ("evaluation/figures",),
    "evaluation/figures/grid.json": ("evaluation/figures",),
    "evaluation/figures/grid/seen-0000-plain.png": ("evaluation/figures",),
}
"""Files of a finished run, and what is made again when one is damaged."""
REWRITTEN = ("metrics.json", "report.html", "recipe.yaml", f"{STUDENT}/README.md", f"{STUDENT}/sampling.json")
"""Files that every command writes from others."""
ALWAYS = (
    "README.md",
    "sampling.json",
    "hashes.json",
    "status.json",
    "metrics.json",
    "report.html",
    ".svg",
    "recipe.yaml",
    "run.lock",
)
TIMED = ("evaluation/figures/metrics.json",)
"""Files that hold measured times, which differ from run to run."""
STAGE_RECORDS = ("prompts", "cache", "distill/plain", "evaluation/latents/plain", "evaluation/figures")


def damage(file: Path, fault: str) -> None:
    """Delete a file, cut it in half, or change one byte."""
    if fault == "deleted":
        file.unlink()
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        flip_a_byte(file)


def written(out: Path, before: dict[Path, int]) -> set[str]:
    """Return the files that were written since, except those that every command writes."""
    after = times(out)
    names = (file.relative_to(out).as_posix() for file, time in after.items() if before.get(file) != time)
    return {name for name in names if not name.endswith((*ALWAYS, "stage.json", "stage-copy.json"))}


@pytest.mark.parametrize(("name", "fault"), in_turn(MADE_AGAIN))
def test_a_damaged_result_is_named_and_only_what_is_needed_is_made_again(run: Run, name: str, fault: str) -> None:
    file = run.out / name
    content, before = file.read_bytes(), times(run.out)
    damage(file, fault)
    run.again()
    what = "is missing" if fault == "deleted" else "is damaged or was edited"
    assert f"{file} {what}; it is made again\n" in run.printed
    assert name in TIMED or file.read_bytes() == content
    assert [each for each in written(run.out, before) if not each.startswith(MADE_AGAIN[name])] == []
    if fault == "flipped":  # nothing is left to repair, whatever the fault was
        before = times(run.out)
        run.again()
        assert written(run.out, before) == set()


@pytest.mark.parametrize(("name", "fault"), in_turn(REWRITTEN))
def test_a_file_that_is_written_every_time_is_as_before(run: Run, name: str, fault: str) -> None:
    file = run.out / name
    run.again()
    content, before = file.read_bytes(), times(run.out)
    damage(file, fault)
    run.again()
    assert file.read_bytes() == content
    assert written(run.out, before) == set()


@pytest.mark.parametrize(("stage", "fault"), in_turn(STAGE_RECORDS))
def test_a_damaged_record_of_a_stage_is_named_and_restored_from_its_copy(run: Run, stage: str, fault: str) -> None:
    file = run.out / stage / "stage.json"
    before = times(run.out)
    damage(file, fault)
    run.again()
    assert f"{file} is missing or damaged; its copy is used\n" in run.printed
    assert written(run.out, before) == set()


@pytest.mark.parametrize(("stage", "fault"), in_turn(STAGE_RECORDS))
def test_results_without_any_record_are_refused_and_moved_only_with_consent(run: Run, stage: str, fault: str) -> None:
    before = times(run.out)
    for name in ("stage.json", "stage-copy.json"):
        damage(run.out / stage / name, fault)
    with pytest.raises(
        CondistillError, match=rf"{stage} has no readable stage\.json, .*\n--update would move .*{stage} \("
    ):
        run.again()
    assert written(run.out, before) == set()
    run.again(update=True)
    assert len(list((run.out / "old").glob(f"*/{stage}"))) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_mark_is_refused_with_the_remedy(run: Run, fault: str) -> None:
    before = times(run.out)
    damage(run.out / "run.json", fault)
    with pytest.raises(CondistillError, match=r'run\.json.* write \{"program": "condistill", "version": "0"\} to '):
        run.again()
    assert written(run.out, before) <= {"run.json"}
    (run.out / "run.json").write_text('{"program": "condistill", "version": "0"}', encoding="utf-8")
    run.again()
    assert written(run.out, before) == {"run.json"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["checkpoints/history.jsonl", "seconds.json"])
def test_losses_and_times_that_are_damaged_are_named_and_nothing_is_trained_again(
    run: Run, name: str, fault: str
) -> None:
    file = run.out / "distill" / "plain" / name
    before = times(run.out)
    damage(file, fault)
    run.again()
    what = "is missing" if fault == "deleted" else "is damaged or was edited"
    assert f"{file} {what}; it is not made again\n" in run.printed
    assert written(run.out, before) <= {f"distill/plain/{name}"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_of_a_finished_run_is_named_and_may_be_deleted(run: Run, fault: str) -> None:
    file = run.out / "distill" / "plain" / "checkpoints" / "step-00000006" / "state.safetensors"
    before = times(run.out)
    damage(file, fault)
    run.again()
    assert (f"{file} is damaged or was edited; it is not made again\n" in run.printed) == (fault != "deleted")
    assert written(run.out, before) <= {file.relative_to(run.out).as_posix()}


@pytest.mark.parametrize("folder", [STUDENT, "evaluation/figures", "evaluation/figures/grid"])
def test_files_that_the_user_added_are_kept_when_the_files_around_them_are_made_again(run: Run, folder: str) -> None:
    (run.out / folder / "mine.txt").write_text("of the user", encoding="utf-8")
    damaged = STUDENT + "/model_index.json" if folder == STUDENT else "evaluation/figures/metrics.json"
    (run.out / damaged).unlink()
    run.again()
    (kept,) = run.out.rglob("mine.txt")
    assert kept == run.out / folder / "mine.txt" or f"moved {run.out / folder} to {kept.parent}" in run.printed
    before = times(run.out)
    run.again()
    assert written(run.out, before) == set()
