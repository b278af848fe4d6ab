"""Run a whole tiny recipe, from a pipeline directory to a student that plain diffusers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from tiny import WORDS

from condistill.config.recipe import Recipe
from condistill.teachers.registry import family_of_pipeline
from condistill.workflow.compress import compress


def run_recipe(directory: Path, out: Path, student: dict[str, Any], **changes: Any) -> Path:
    """Run every stage of a tiny recipe, and return the directory of the student's pipeline.

    Four cached latents, two training steps, an evaluation on two prompts, and the report.

    Args:
        student: the recipe's `student`.
        changes: settings of other sections, such as `distill={"steps": 3}`; `lines` are the prompts.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "prompts.txt").write_text("\n".join(changes.pop("lines", WORDS)), encoding="utf-8")
    recipe: dict[str, Any] = {
        "teacher": {"pipeline": str(directory)},
        "prompts": {"files": [str(out / "prompts.txt")]},
        "cache": {"size": 4, "num_inference_steps": 2, "guidance_scale": 2.0, "batch_size": 2, "shard_size": 4},
        "student": student,
        "distill": {
            "steps": 2,
            "batch_size": 2,
            "preview_every": 0,
            "logging": {"checkpoint_every": 1, "log_every": 1},
        },
        "evaluate": {"prompts_per_split": 2, "batch_size": 2, "grid": 1},
    }
    for section, settings in changes.items():
        recipe[section] = {**recipe[section], **settings}
    compress(Recipe.model_validate(recipe), out / "run", console=Console(quiet=True))
    assert (out / "run" / "report.html").is_file()
    return next((out / "run" / "pipelines").iterdir())


def check_end_to_end(directory: Path, out: Path, student: dict[str, Any], **changes: Any) -> DiffusionPipeline:
    """Run a whole tiny recipe, check the student, and return its pipeline as plain diffusers loads it."""
    student_directory = run_recipe(directory, out, student, **changes)
    log = (out / "run").rglob("history.jsonl")
    losses = [json.loads(line)["loss"] for file in log for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    assert not [*student_directory.rglob("*.bin")]
    student_pipeline = DiffusionPipeline.from_pretrained(student_directory, use_safetensors=True)
    student_pipeline.set_progress_bar_config(disable=True)
    teacher = DiffusionPipeline.from_pretrained(directory, use_safetensors=True)
    name = family_of_pipeline(type(teacher).__name__).denoiser_name
    sizes = [sum(p.numel() for p in getattr(pipeline, name).parameters()) for pipeline in (student_pipeline, teacher)]
    assert sizes[0] < sizes[1]
    assert all(torch.isfinite(p).all() for p in getattr(student_pipeline, name).parameters())
    return student_pipeline
