"""A run directory for the studio, put together from finished parts without a training."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from grids import write_previews
from histories import build_history
from runs import tiny_recipe

from condistill.cache.latents import shard_name, write_manifest, write_shard
from condistill.distill.history import HISTORY_NAME
from condistill.run.directory import RunMark
from condistill.run.lock import Holder
from condistill.run.status import STATUS_NAME, RunStatus

EVIL = "<script>alert(1)</script>\x1b[2J"


def write_run(folder: Path, teacher: Path, students: Mapping[str, Path]) -> Path:
    """Write the run of `tiny_recipe` with a cache of 20 latents, and return it.

    Args:
        students: pipelines by name, which become finished students.
    """
    path = folder / "run"
    path.mkdir(parents=True)
    RunMark(program="condistill", version="0").write(path / "run.json")
    (path / "recipe.yaml").write_text(tiny_recipe(folder, teacher).to_yaml(), encoding="utf-8")
    for name, pipeline in students.items():
        shutil.copytree(pipeline, path / "pipelines" / name)
    (path / "cache").mkdir()
    prompts = [EVIL, *(f"a red star {row}" for row in range(1, 20))]
    latents = np.random.default_rng(0).standard_normal((20, 4, 8, 8)).astype(np.float16)
    write_shard(path / "cache" / shard_name(0), latents, prompts)
    write_manifest(path / "cache", shard_size=20, origin={"latent_shape": (4, 8, 8)})
    return path


def train(run: Path, name: str, steps: int, **changes: Any) -> None:
    """Let a training, of this process, have come to a step: its losses, its preview and its status are written."""
    folder = run / "distill" / name / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record.model_dump_json() + "\n" for record in build_history(steps)]
    (folder / HISTORY_NAME).write_text("".join(lines), encoding="utf-8")
    write_previews(folder.parent / "previews", [0, steps])
    Holder.present().write(run / "run.lock.json")
    fields: dict[str, Any] = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "written": datetime.now().astimezone().isoformat(),
        "stage": "distill",
        "label": name,
        "done": steps,
        "total": 60,
        "unit": "steps",
        "rate": 2.0,
        "left_sec": 125.0,
    }
    RunStatus(**{**fields, **changes}).write(run / STATUS_NAME)
