"""Signals in each stage of a run, and what is left of its work."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked import quick_python
from processes import CPU, TORCHRUN, write_recipe

from condistill.cache.latents import read_shard, shard_name
from condistill.distill.checkpoints import list_checkpoints
from condistill.distill.history import HISTORY_NAME

pytestmark = pytest.mark.slow  # commands in processes of their own

SLOWER = """
import importlib, signal, sys, time
for number in (signal.SIGINT, signal.SIGHUP):  # ignored in the background of a shell
    signal.signal(number, signal.default_int_handler)
module, names = importlib.import_module(sys.argv[1]), sys.argv[2].split(".")
for name in names[:-1]:
    module = getattr(module, name)
called = getattr(module, names[-1])

def slower(*args, **options):
    result = called(*args, **options)
    time.sleep(float(sys.argv[3]))
    return result

setattr(module, names[-1], slower)
from condistill.cli import main
main(sys.argv[4:])
"""
LONG_TRAINING = tuple(
    part
    for setting in ("logging.checkpoint_every=100", "steps=100", "preview_every=0")
    for part in ("-s", f"distill.{setting}")
)
SLOW_CACHE = ("condistill.cache.fill", "_sample_batch", "0.5")
SLOW_STEP = ("condistill.distill.trainer", "Trainer.train_step", "1")
SLOW_EVALUATION = ("condistill.evaluate.generate", "_generate", "0.5")


class Command:
    """A command in a process of its own, which something makes slow."""

    def __init__(
        self, folder: Path, slow: tuple[str, str, str], *arguments: str, launcher: tuple[str, ...] = ()
    ) -> None:
        (folder / "slower.py").write_text(SLOWER, encoding="utf-8")
        self.log = folder / "log.txt"
        python = quick_python()
        command = [python, *launcher, str(folder / "slower.py"), *slow, *arguments]
        with self.log.open("wb") as log:
            variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python, **CPU}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=variables)

    def wait_for(self, path: Path, *, timeout: float = 120.0) -> None:
        """Wait until a file has some content."""
        end = time.monotonic() + timeout
        while not path.exists() or not path.stat().st_size:
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < end, self.read()
            time.sleep(0.02)

    def stop(self, number: signal.Signals) -> tuple[int, str, float]:
        """Send a signal, and return the exit code, the log, and the seconds until the end."""
        started = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        return code, self.read(), time.monotonic() - started

    def read(self) -> str:
        return self.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_cache_keeps_its_shards(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    recipe, out = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts), tmp_path / "run"
    command = Command(tmp_path, SLOW_CACHE, "run", str(recipe), "--out", str(out))
    command.wait_for(out / "cache" / shard_name(0))
    code, log, seconds = command.stop(number)
    assert code == 128 + number
    assert log.splitlines()[-1].endswith("; finished work is kept: run the same command again to resume")
    assert ("interrupted" if number == signal.SIGINT else f"stopped by {number.name}") in log.splitlines()[-1]
    assert "Traceback" not in log
    assert seconds < 5
    read_shard(out / "cache" / shard_name(0))
    assert not [*(out / "cache").glob(".*")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_training_writes_a_checkpoint(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    recipe, out = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts), tmp_path / "run"
    command = Command(tmp_path, SLOW_STEP, "distill", str(recipe), "--out", str(out), *LONG_TRAINING)
    command.wait_for(out / "distill" / "rolling" / "checkpoints" / HISTORY_NAME)
    code, log, _ = command.stop(number)
    (checkpoint,) = list_checkpoints(out / "distill" / "rolling" / "checkpoints")
    step = int(checkpoint.name.removeprefix("step-"))
    assert code == 128 + number
    assert log.splitlines()[-1] == (
        f"stopped by {number.name}; the checkpoint of step {step} is kept: run the same command again to resume"
    )


def test_a_stopped_evaluation_says_so(tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path) -> None:
    evaluation = {"prompts_per_split": 8, "batch_size": 1, "grid": 1}
    recipe = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts, evaluate=evaluation)
    out = tmp_path / "run"
    command = Command(tmp_path, SLOW_EVALUATION, "run", str(recipe), "--out", str(out))
    command.wait_for(out / "evaluation" / "latents" / "teacher" / "stage.json")
    code, log, _ = command.stop(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert log.splitlines()[-1].startswith("stopped by SIGTERM; finished work is kept")


def test_two_processes_write_a_checkpoint_within_two_steps_however_long_they_are(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path
) -> None:
    recipe, out = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts), tmp_path / "run"
    slow = (*SLOW_STEP[:2], "3")
    command = Command(tmp_path, slow, "distill", str(recipe), "--out", str(out), *LONG_TRAINING, launcher=TORCHRUN)
    command.wait_for(out / "distill" / "rolling" / "checkpoints" / HISTORY_NAME)
    code, log, seconds = command.stop(signal.SIGTERM)
    assert code != 0
    assert seconds < 3 * 3  # two steps, and the end of the processes
    (checkpoint,) = list_checkpoints(out / "distill" / "rolling" / "checkpoints")
    assert log.count("; the checkpoint of step") == 1
    assert f"the checkpoint of step {int(checkpoint.name.removeprefix('step-'))} is kept" in log
