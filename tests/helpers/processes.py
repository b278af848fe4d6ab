"""Training in one process and in two: the same global batch must give the same losses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from condistill.distill.history import HISTORY_NAME, HistoryRecord, read_history

RECIPE: dict[str, Any] = {
    "cache": {"size": 8, "num_inference_steps": 2, "guidance_scale": 2.0, "batch_size": 2, "shard_size": 2},
    "student": {"width": 0.5},
    "distill": {
        "steps": 4,
        "batch_size": 8,
        "preview_every": 2,
        "optimizer": {"learning_rate": 1.0e-3},
        "logging": {"checkpoint_every": 2, "log_every": 1},
    },
    "variants": {
        "stages": {"distill": {"loss": {"features": "stages"}}},  # widths differ, so that 1x1 maps are trained as well
        "rolling": {"distill": {"loss": {"features": "cross_attention"}, "path": {"start": "noise", "share": 0.5}}},
    },
}
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
TORCHRUN = (*LAUNCHER, "2")


CPU = {"ACCELERATE_USE_CPU": "true"}


def run_in_two_processes(
    folder: Path,
    script: str,
    *,
    timeout: float = 120.0,
    processes: int = 2,
    python: str = sys.executable,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script in two or more processes on the CPU, which talk over gloo. `RANK` is the number of each."""
    file = folder / "script.py"
    file.write_text(script, encoding="utf-8")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **CPU, "PYTHON_EXEC": python, **environment}
    command = [python, *LAUNCHER, str(processes), str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, timeout=timeout)


def write_recipe(folder: Path, pipeline: Path, prompts: Sequence[str], **changes: Any) -> Path:
    """Write the recipe of these tests and its prompts, and return its path.

    Args:
        changes: other sections; `logging` changes the training's.
    """
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    recipe = {"teacher": {"pipeline": str(pipeline)}, "prompts": {"files": ["prompts.txt"]}, **RECIPE}
    if logging := changes.pop("logging", None):
        recipe["distill"] = {**recipe["distill"], "logging": logging}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**recipe, **changes}), encoding="utf-8")
    return file


def distill(
    recipe: Path, *launcher: str, environment: Mapping[str, str], python: str = sys.executable
) -> tuple[dict[str, list[HistoryRecord]], str]:
    """Train in separate processes, and return the records of each student and the output."""
    out = recipe.parent / f"run{len(launcher)}"
    command = [python, *launcher, "-m", "condistill", "distill", str(recipe), "--out", str(out)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    folders = {name: out / "distill" / name / "checkpoints" / HISTORY_NAME for name in RECIPE["variants"]}
    return {name: read_history(file) for name, file in folders.items()}, done.stderr


def check_two_processes(
    folder: Path,
    pipeline: Path,
    prompts: Sequence[str],
    *,
    environment: Mapping[str, str],
    rel: float,
    python: str = sys.executable,
) -> None:
    """Check that two processes have the losses of one, to a relative tolerance."""
    recipe = write_recipe(folder, pipeline, prompts)
    alone, output_alone = distill(recipe, environment=environment, python=python)
    shared, output_shared = distill(recipe, *TORCHRUN, environment=environment, python=python)
    assert "cache: 8/8" in output_alone
    assert "cache: 4/4" in output_shared, "the second process generated no latents"
    for name in RECIPE["variants"]:
        assert len(alone[name]) == len(shared[name]) == 4
        for one, two in zip(alone[name], shared[name], strict=True):
            assert two.loss == pytest.approx(one.loss, rel=rel)
            assert two.terms == pytest.approx(one.terms, rel=rel)
            assert two.replaced_prompt == one.replaced_prompt
            assert one.terms["feature"] > 0
