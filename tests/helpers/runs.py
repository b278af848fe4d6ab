"""Whole runs in seconds: a tiny recipe, and a run that a test may change."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from condistill.config.recipe import Recipe
from condistill.workflow.compress import compress

VARIANTS = ("plain", "random_conditioning")


def some_prompts() -> str:
    """Return 16 prompts, one per line; 5 of them have the word star."""
    prompts = [f"a {size} {shape}" for size in ("small", "large", "huge", "tiny") for shape in ("box", "ball", "star")]
    prompts += [f"two {shape}s" for shape in ("box", "ball", "cone", "star")]
    return "\n".join(prompts) + "\n"


def tiny_recipe(folder: Path, teacher: Path, *overrides: str, prompts: str | None = None) -> Recipe:
    """Return the recipe of a whole run in seconds: 11 cached latents, two students, 6 steps each."""
    (folder / "prompts.txt").write_text(prompts or some_prompts(), encoding="utf-8")
    data = {
        "teacher": {"pipeline": str(teacher)},
        "prompts": {"files": ["prompts.txt"], "unseen_words": ["star"]},
        "cache": {"size": 11, "num_inference_steps": 2, "guidance_scale": 3.0, "batch_size": 4, "shard_size": 4},
        "student": {"width": 0.5},
        "distill": {
            "steps": 6,
            "batch_size": 2,
            "preview_every": 0,
            "optimizer": {"ema_decay": 0.5},
            "logging": {"checkpoint_every": 3, "log_every": 2},
        },
        "variants": {
            "plain": {"distill": {"conditioning": {"probability": {"schedule": "none"}}}},
            "random_conditioning": {},
        },
        "evaluate": {"prompts_per_split": 2, "batch_size": 4, "grid": 1},
    }
    return Recipe.parse(json.dumps(data), overrides, folder=folder)


def times(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


class Run:
    """A finished run that a test may change."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.teacher, self.out = folder, teacher, folder / "run"
        self.printed = ""
        self.prompts = some_prompts()

    def again(self, *overrides: str, **options: Any) -> Path:
        console = Console(record=True, width=80, file=io.StringIO())
        try:
            return compress(
                tiny_recipe(self.folder, self.teacher, *overrides, prompts=self.prompts),
                self.out,
                console=console,
                **options,
            )
        finally:
            self.printed = console.export_text()


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
