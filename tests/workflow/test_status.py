from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from runs import Run, tiny_recipe

from condistill.errors import CondistillError
from condistill.run.directory import RunMark
from condistill.run.lock import Holder, RunLock
from condistill.run.stage_directory import StageRecord
from condistill.run.status import STATUS_NAME, RunStatus, StatusWriter
from condistill.utils.progress import Meter
from condistill.workflow.status import RunReport, read_status, to_json


def snapshot(folder: Path) -> dict[Path, Any]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run directory in which a training of 6 steps has come to step 3."""
    path = tmp_path / "run"
    path.mkdir()
    RunMark(program="condistill", version="0").write(path / "run.json")
    (path / "recipe.yaml").write_text(tiny_recipe(tmp_path, tmp_path / "teacher").to_yaml(), encoding="utf-8")
    for name in ("prompts", "cache", "distill/plain"):
        (path / name).mkdir(parents=True)
        StageRecord(key="k", done=name != "distill/plain", inputs={}).write(path / name / "stage.json")
    (path / "distill/plain/checkpoints/step-00000003").mkdir(parents=True)
    previews = path / "distill/plain/previews"
    previews.mkdir()
    for step, age in ((0, 60), (3, 0)):
        file = previews / f"step-{step:06d}.png"
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    return path


def status(**changes: Any) -> RunStatus:
    now = datetime.now().astimezone() - timedelta(seconds=changes.pop("age", 2))
    fields: dict[str, Any] = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "written": now.isoformat(),
        "stage": "distill",
        "label": "plain",
        "done": 4,
        "total": 6,
        "unit": "steps",
        "rate": 1 / 12.3,
        "left_sec": 24.6,
        "losses": {"loss": 0.5, "output": 0.25},
    }
    return RunStatus(**{**fields, **changes})


def holder(**changes: Any) -> Holder:
    return Holder.present().model_copy(update=changes)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_running_training_shows_stage_progress_time_left_losses_and_preview(directory: Path) -> None:
    status().write(directory / STATUS_NAME)
    holder().write(directory / "run.lock.json")
    lines = list(read_status(directory).lines())
    assert lines[0].startswith(f"{directory}: running, process {os.getpid()} on ")
    assert lines[0].endswith("last sign of life 2 s ago")
    assert lines[1:] == [
        "now: distill plain, 4/6 steps, 12.3 s/step, 0:25 left of this part",
        "last losses: loss 0.500, output 0.250",
        "prompts: done",
        "cache: done",
        "distill plain: 3 of 6 steps (newest checkpoint)",
        "distill random_conditioning: 0 of 6 steps",
        "evaluate: 0 of 3 models",
        "report: to do",
        f"newest preview: {directory / 'distill/plain/previews/step-000003.png'}",
    ]


@pytest.mark.parametrize(
    ("of_status", "of_holder", "state", "text"),
    [
        (None, None, "unfinished", ""),
        ({"state": "finished"}, None, "unfinished", "ended 2 s ago"),
        ({"state": "stopped", "reason": "interrupted"}, None, "stopped", "interrupted"),
        ({"state": "failed", "reason": "the disk is full"}, None, "failed", "the disk is full"),
        ({}, {}, "running", "last sign of life"),
        ({"pid": 1}, {}, "running", "since"),  # it computes checksums and has not come to its first stage
        ({"pid": "dead"}, {"pid": "dead"}, "killed", "process"),
        ({"pid": "dead"}, None, "killed", "process"),
        ({"host": "other"}, {"host": "other"}, "running", "on other"),
        ({"host": "other", "age": 500}, {"host": "other"}, "unknown", "8.3 min ago"),
        ({"age": 500}, {}, "running", "no sign of life for 8.33 min"),
        ({"written": "yesterday"}, {}, "running", ""),
        (None, {}, "running", "process"),
    ],
)
def test_the_state_follows_from_the_lock_and_the_last_sign_of_life(
    directory: Path, of_status: dict[str, Any] | None, of_holder: dict[str, Any] | None, state: str, text: str
) -> None:
    pid = dead_pid()
    for changes in (of_status, of_holder):
        if changes and changes.get("pid") == "dead":
            changes["pid"] = pid
    if of_status is not None:
        status(**of_status).write(directory / STATUS_NAME)
    if of_holder is not None:
        holder(**of_holder).write(directory / "run.lock.json")
    report = read_status(directory)
    assert report.state == state
    assert text in "\n".join(report.lines())


def test_a_status_writes_nothing_and_locks_nothing(directory: Path) -> None:
    status().write(directory / STATUS_NAME)
    lock = RunLock(directory)
    lock.acquire()
    before = snapshot(directory)
    assert read_status(directory).state == "running"
    assert snapshot(directory) == before
    lock.release()
    before = snapshot(directory)
    read_status(directory)
    assert snapshot(directory) == before


@pytest.mark.parametrize("damage", [b"", b"\0\xff", b"{}", b'{"format": 99}', b"[" * 10_000])
@pytest.mark.parametrize(
    "name", [STATUS_NAME, "run.lock.json", "recipe.yaml", "cache/stage.json", "distill/plain/stage.json"]
)
def test_damaged_files_are_named_or_left_out(directory: Path, name: str, damage: bytes) -> None:
    status().write(directory / STATUS_NAME)
    (directory / name).write_bytes(damage)
    report = read_status(directory)
    assert "\n".join(report.lines())
    if name in (STATUS_NAME, "recipe.yaml"):
        assert any(name in warning for warning in report.warnings)
    if name == "cache/stage.json":
        assert "cache: 0 of 11 images" in list(report.lines())


def test_the_json_is_a_record_that_can_be_read_again(directory: Path) -> None:
    status().write(directory / STATUS_NAME)
    text = to_json(read_status(directory))
    assert RunReport.model_validate_json(text).parts[2].done == 3
    assert json.loads(text)["now"]["losses"] == {"loss": 0.5, "output": 0.25}


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"there is no folder .*gone; give a run directory, such as runs/recipe"):
        read_status(tmp_path / "gone")
    with pytest.raises(CondistillError, match=r"has no run\.json, so it is no run directory; give the folder of --out"):
        read_status(tmp_path)


def test_a_quick_run_is_labelled(directory: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path / "teacher", "quick=true")
    (directory / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert "quick run: a test of the set-up, not a student to use" in list(read_status(directory).lines())


# the writer


def test_a_writer_keeps_progress_and_says_how_it_ended(directory: Path) -> None:
    writer = StatusWriter(directory)
    writer.enter("cache")
    assert not (directory / STATUS_NAME).exists()
    writer.open()
    writer.enter("distill")
    meter = Meter(6, "steps")
    meter.add(2)
    writer.note_losses({"loss": 0.5, "task": float("nan")})
    writer.advance("plain", meter, "loss 0.5")
    now = RunStatus.read(directory / STATUS_NAME, remedy="")
    assert (now.state, now.stage, now.label, now.done, now.losses) == ("running", "distill", "plain", 2, {"loss": 0.5})
    meter.add(1)
    writer.advance("plain", meter, "")
    assert RunStatus.read(directory / STATUS_NAME, remedy="").done == 2  # within a second of the last write
    for error, state in ((None, "finished"), (KeyboardInterrupt(), "stopped"), (ValueError("x"), "failed")):
        other = StatusWriter(directory)
        other.open()
        other.close(error)
        assert RunStatus.read(directory / STATUS_NAME, remedy="").state == state
    writer.close(None)


def test_a_status_that_cannot_be_written_stops_nothing(directory: Path) -> None:
    (directory / STATUS_NAME).mkdir()
    writer = StatusWriter(directory)
    writer.open()
    writer.close(None)
    assert (directory / STATUS_NAME).is_dir()


# whole runs


@pytest.mark.slow
def test_a_finished_run_shows_its_results_and_its_previews(finished: Run) -> None:
    report = read_status(finished.out)
    assert report.state == "finished"
    assert all(part.is_done for part in report.parts)
    names = ("pipelines/plain", "pipelines/random_conditioning", "report.html")
    assert report.results == tuple(str(finished.out / name) for name in names)
    assert report.preview == str(finished.out / "distill/random_conditioning/previews/step-000006.png")
    assert report.now is not None
    assert set(report.now.losses) >= {"loss", "output", "feature"}


@pytest.mark.slow
def test_a_run_that_failed_says_why_and_what_remains(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def fail(*_: Any) -> None:
        raise CondistillError("the disk is full")

    monkeypatch.setattr(importlib.import_module("condistill.report.stage"), "make", fail)
    (run.out / "report.html").unlink()
    with pytest.raises(CondistillError, match="the disk is full"):
        run.again()
    report = read_status(run.out)
    assert (report.state, report.now and report.now.reason) == ("failed", "the disk is full")
    assert [part.stage for part in report.parts if not part.is_done] == ["report"]


def test_what_one_thread_notes_is_kept_while_another_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, is_writing, copy = StatusWriter(tmp_path), threading.Event(), RunStatus.model_copy

    def slow_copy(self: RunStatus, *, update: Any) -> RunStatus:
        copied = copy(self, update=update)
        if "written" in update and threading.current_thread() is not threading.main_thread():
            is_writing.set()
            time.sleep(0.05)
        return copied

    writer.open()
    monkeypatch.setattr(RunStatus, "model_copy", slow_copy)
    sign_of_life = threading.Thread(target=writer._write)
    sign_of_life.start()
    is_writing.wait(5)
    writer.close(None)
    sign_of_life.join()
    assert RunStatus.read(tmp_path / STATUS_NAME, remedy="").state == "finished"


def test_the_report_as_json_cannot_command_a_terminal() -> None:
    text = to_json(RunReport(path="runs/\x9b31m\u202eé", state="finished"))
    assert text.isascii()
    assert json.loads(text)["path"] == "runs/\x9b31m\u202eé"
