"""Kill runs at random moments, start each again until it ends, and compare its results with those of a run left alone.

    python tools/kill_runs.py --kills 30                 # one process: results equal byte for byte
    python tools/kill_runs.py --processes 2 --kills 20   # two processes, one or both killed: byte for byte
    python tools/kill_runs.py --changed --kills 10       # the number of processes changes: to float32 summation
    python tools/kill_runs.py --delays 10                # nothing is killed: the second process is late everywhere

`make test` does the same with a few kills (`tests/workflow/test_kills.py`). A run has every stage and two students, one
with feature maps and one with rolling states; its teacher is tiny, with random weights. Runs are forked from a process
that has imported everything, so that a kill costs seconds. Moments follow from `--seed`, as far as the machine keeps
time.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

RECIPE: dict[str, Any] = {
    "seed": 0,
    "prompts": {"files": ["miniature"], "unseen_words": ["star", "heart"]},
    "cache": {"size": 8, "num_inference_steps": 2, "guidance_scale": 3.0, "batch_size": 2, "shard_size": 2},
    "student": {"width": 0.5},
    "distill": {
        "steps": 8,
        "preview_every": 4,
        "batch_size": 4,
        "optimizer": {"ema_decay": 0.9, "learning_rate": 1.0e-3},
        "logging": {"checkpoint_every": 2, "log_every": 2},
    },
    "variants": {
        "maps": {"distill": {"loss": {"features": "stages"}}},
        "rolling": {"distill": {"loss": {"features": "cross_attention"}, "path": {"start": "noise", "share": 0.5}}},
    },
    "evaluate": {"prompts_per_split": 2, "batch_size": 2, "grid": 1},
}
DENOISER: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}
"""The smallest U-Net that has all that is trained and saved: a run takes a few seconds."""
PATIENCE_SEC = 20.0
"""How long a process may take to notice that the other one is dead."""


def write(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def prepare(folder: Path, *, tracker: str) -> Path:
    """Write a teacher and a recipe, and return the path of the recipe."""
    recipe = importlib.import_module("kill").prepare(folder, **DENOISER)
    content = {"teacher": yaml.safe_load(recipe.read_text(encoding="utf-8"))["teacher"], **RECIPE}
    content["distill"] = {**RECIPE["distill"], "logging": {**RECIPE["distill"]["logging"], "tracker": tracker}}
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return recipe


def preload() -> None:
    """Import in this process what every run imports, and let runs measure their times only once."""
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    import torch

    torch.set_num_threads(1)
    for module in ("condistill.workflow.compress", "condistill.report.html", "condistill.miniature.build"):
        importlib.import_module(module)
    timing = importlib.import_module("condistill.profiling.timing")
    timing.MIN_ROUNDS, timing.MAX_SECONDS = 1, 0.0
    gc.collect()
    gc.freeze()  # or every collection of every run goes through all that was imported


def delay_everything(rng: random.Random) -> None:
    """Make this process late before and after the functions of every stage, and within a training."""
    stages = [f"condistill.{name}.stage" for name in ("prompts", "cache", "distill", "evaluate", "report")]
    named = [(importlib.import_module(stage), name) for stage in stages for name in ("key", "is_done", "make", "open")]
    trainer = importlib.import_module("condistill.distill.trainer").Trainer
    named += [(trainer, name) for name in ("__init__", "run", "train_step", "_check", "_log", "_save", "_resume")]
    named += [(importlib.import_module("condistill.cache.fill"), "_sample_batch")]
    named += [(importlib.import_module("condistill.run.context").Run, "open_directory")]
    for owner, name in named:
        setattr(owner, name, _late(getattr(owner, name), rng))


def _late(called: Any, rng: random.Random) -> Any:
    def late(*args: Any, **options: Any) -> Any:
        time.sleep(rng.choice([0.0, 0.0, 0.02, 0.3]))
        result = called(*args, **options)
        time.sleep(rng.choice([0.0, 0.0, 0.02, 0.3]))
        return result

    return late


class RunningRun:
    """The processes of one `condistill run`."""

    def __init__(self, recipe: Path, out: Path, processes: int, *, delays: int | None = None) -> None:
        """Start the processes; `delays` is a seed, with which the second one is late."""
        self._delays = delays
        self.log = out.with_name(f"{out.name}.log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world: list[dict[str, str]] = [{}]
        if processes > 1:
            common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            world = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        self.started = time.monotonic()
        self.alive = [self._fork(recipe, out, environment) for environment in world]
        self.codes: list[int] = []

    def _fork(self, recipe: Path, out: Path, environment: dict[str, str]) -> int:
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.environ |= environment
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(log, number)
            from condistill.cli import main

            if self._delays is not None and environment.get("RANK") == "1":
                delay_everything(random.Random(self._delays))
            main(["run", str(recipe), "--out", str(out)])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os._exit(code)

    def wait(self, seconds: float) -> bool:
        """Wait up to some seconds, and return whether every process has ended."""
        end = time.monotonic() + seconds
        while self.alive:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process:
                self.alive.remove(process)
                self.codes.append(os.waitstatus_to_exitcode(status))
            elif time.monotonic() >= end:
                return False
            else:
                time.sleep(0.002)
        return True

    def kill(self, victims: Sequence[int]) -> None:
        """Kill some of the processes, then end the others as a launcher does: with SIGTERM, and SIGKILL if need be."""
        processes = list(self.alive)
        for victim in victims:
            os.kill(processes[victim], signal.SIGKILL)
        for process in processes:
            if process not in [processes[victim] for victim in victims]:
                os.kill(process, signal.SIGTERM)
        if not self.wait(PATIENCE_SEC):
            for process in self.alive:
                os.kill(process, signal.SIGKILL)
            self.wait(PATIENCE_SEC)

    def finish(self) -> float:
        """Wait for the end, and return the seconds that the run took.

        Raises:
            SystemExit: the run failed or takes too long; the message has its log.
        """
        ended = self.wait(600)
        if not ended or any(self.codes):
            self.kill(range(len(self.alive)))
            raise SystemExit(f"the run failed with {self.codes}:\n{self.log.read_text(encoding='utf-8')}")
        return time.monotonic() - self.started


def differences(out: Path, expected: Path, *, exact: bool) -> list[str]:
    """Return the names of results that differ between two finished runs."""
    if not exact:
        return _far_apart(out, expected)
    wrong: list[str] = importlib.import_module("kill").differences(out, expected)
    return wrong


def _far_apart(out: Path, expected: Path) -> list[str]:
    """Return the names of files whose numbers differ by more than a few roundings of float32."""
    import torch
    from safetensors.torch import load_file

    wrong = []
    for file in sorted(expected.rglob("*.safetensors")):
        ours, theirs = load_file(out / file.relative_to(expected)), load_file(file)
        close = ours.keys() == theirs.keys() and all(
            torch.allclose(_total(name, ours[name]), _total(name, tensor), rtol=1e-3, atol=1e-4)
            for name, tensor in theirs.items()
        )
        wrong += [] if close else [str(file.relative_to(expected))]
    for file in sorted(expected.rglob("history.jsonl")):
        pairs = [
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in (out / file.relative_to(expected), file)
        ]
        steps = [[record["step"] for record in records] for records in pairs]
        losses = [[record["loss"] for record in records] for records in pairs]
        close = steps[0] == steps[1] and all(abs(a - b) <= 1e-4 * abs(b) for a, b in zip(*losses, strict=True))
        wrong += [] if close else [str(file.relative_to(expected))]
    return wrong


def _total(name: str, tensor: Any) -> Any:
    """Return a tensor in float64; sums of losses have a row per process, and are added."""
    return tensor.double().sum(0) if name.startswith("history/") else tensor.double()


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, start again, compare; the exit code is 1 if a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--changed", action="store_true", help="start again with another number of processes")
    parser.add_argument("--delays", type=int, default=0, help="runs of two processes, with a tracker and delays")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = prepare(folder, tracker="tensorboard" if options.delays else "none")
        processes = 2 if options.delays else options.processes
        seconds = RunningRun(recipe, folder / "expected", processes).finish()
        write(f"left alone: {seconds:.1f} s")
        failed = delay(folder, recipe, options) if options.delays else kill(folder, recipe, options, seconds)
    sys.exit(bool(failed))


def delay(folder: Path, recipe: Path, options: argparse.Namespace) -> int:
    """Run with delays, and return the number of runs whose results differ."""
    failed = 0
    for number in range(options.delays):
        out = folder / f"late-{number}"
        seconds = RunningRun(recipe, out, 2, delays=options.seed + number).finish()
        wrong = differences(out, folder / "expected", exact=True)
        wrong += [name for name in RECIPE["variants"] if not [*(out / "tracker" / name).glob("events*")]]
        failed += bool(wrong)
        write(f"{number + 1}: the second process late, {seconds:.1f} s: {', '.join(wrong) or 'equal'}")
        shutil.rmtree(out)
    write(f"{options.delays} runs with delays, {failed} runs differ")
    return failed


def kill(folder: Path, recipe: Path, options: argparse.Namespace, seconds: float) -> int:
    """Kill, start again and compare; return the number of runs whose results differ."""
    rng = random.Random(options.seed)
    killed = failed = number = 0
    while killed < options.kills:
        number += 1
        out, moment = folder / f"run-{number}", rng.random() * seconds
        first = 1 + number % 2 if options.changed else options.processes
        second = 3 - first if options.changed else first
        victims = rng.choice([[0], [1], [0, 1]]) if first == 2 else [0]
        run = RunningRun(recipe, out, first)
        if run.wait(moment):
            write(f"{number}: ended before {moment:.2f} s with {run.codes}, not counted")
        else:
            run.kill(victims)
            killed += 1
            RunningRun(recipe, out, second).finish()
            wrong = differences(out, folder / "expected", exact=not options.changed)
            failed += bool(wrong)
            what = f"{first} process(es), {victims} killed after {moment:.2f} s, again with {second}"
            write(f"{number}: {what}: {', '.join(wrong) or 'equal'}")
        shutil.rmtree(out, ignore_errors=True)
    write(f"{killed} kills, {failed} runs differ")
    return failed


if __name__ == "__main__":
    main()
