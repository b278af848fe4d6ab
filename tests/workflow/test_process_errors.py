"""An error in one of two processes: every process ends, and the reason is printed once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from forked import quick_python
from processes import run_in_two_processes, write_recipe

from condistill.distill.checkpoints import list_checkpoints

pytestmark = pytest.mark.slow  # commands in two processes

FAILING = """
import importlib, os
place, rank = {place!r}, {rank!r}
module, *names = place.split(":")[0], *place.split(":")[1].split(".")
owner = importlib.import_module(module)
for name in names[:-1]:
    owner = getattr(owner, name)
called = getattr(owner, names[-1])

def failing(*args, **options):
    if os.environ["RANK"] == rank:
        raise OSError(5, "Input/output error", "the-bad-disk")
    return called(*args, **options)

setattr(owner, names[-1], failing)
from condistill.cli import main
main(["run", {recipe!r}, "--out", {out!r}])
"""
PLACES = {
    "evaluation": ("condistill.evaluate.stage:write_figures", "0"),
    "checkpoint": ("condistill.distill.checkpoints:save_checkpoint", "0"),
    "cache": ("condistill.cache.fill:write_shard", "1"),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_one_process_ends_all_and_is_printed_once(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path, place: str
) -> None:
    recipe = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts)
    name, rank = PLACES[place]
    script = FAILING.format(place=name, rank=rank, recipe=str(recipe), out=str(tmp_path / "run"))
    started = time.monotonic()
    done = run_in_two_processes(tmp_path, script, timeout=200, python=quick_python())
    assert done.returncode != 0
    assert time.monotonic() - started < 150
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "the-bad-disk: the disk reports an input/output error" in done.stderr
    assert ("error: process 1: " in done.stderr) is (rank == "1")


INFINITE = """
import math
import condistill.distill.stage as stage

class Spoilt(stage.Trainer):
    def train_step(self, micro_batches):
        if self.step == 1 and self.accelerator.process_index == 1:
            right = self.objective.losses

            def infinite(comparison):
                losses = right(comparison)
                return type(losses)(losses.total * math.inf, losses.terms)

            self.objective.losses = infinite
        super().train_step(micro_batches)

stage.Trainer = Spoilt
from condistill.cli import main
main(["run", {recipe!r}, "--out", {out!r}])
"""


def test_an_infinite_loss_of_one_process_is_the_decision_of_all(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts)
    out = tmp_path / "run"
    script = INFINITE.format(recipe=str(recipe), out=str(out))
    done = run_in_two_processes(tmp_path, script, timeout=200, python=quick_python())
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "the loss of step 1 is not finite for 4 sample(s): t=" in done.stderr
    assert "There is no good checkpoint." in done.stderr
    assert list_checkpoints(out / "distill" / "rolling" / "checkpoints") == []
