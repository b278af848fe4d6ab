"""The distil stage of a run: derive a student, train it, and save its pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from condistill.cache.latents import LatentCache
from condistill.distill.history import Stopwatch
from condistill.distill.trainer import Trainer
from condistill.errors import CondistillError
from condistill.pipelines.sampling import SAMPLING_NAME
from condistill.pipelines.save import save_pipeline
from condistill.profiling.macs import macs
from condistill.prompts.pool import PromptPool
from condistill.students.derive import Student, student_of
from condistill.students.guidance import with_guidance
from condistill.students.scores.channels import kept_importance
from condistill.students.scores.layers import kept_influence
from condistill.students.target import settled
from condistill.teachers.family import Family
from condistill.utils.atomic import write_text
from condistill.utils.meta import parameters
from condistill.utils.progress import track

if TYPE_CHECKING:
    from condistill.workflow.compress import Compression

STUDENT_NAME = "student.json"


def distill_variant(run: Compression, name: str, directory: Path, cache: LatentCache, pool: PromptPool) -> None:
    """Train the variant `name` in `directory` and save it under the run's `pipelines/`."""
    recipe, family, accelerator = run.recipe, run.family, run.accelerator
    settings = recipe.variant(name)[1]
    if cache.latent_shape != family.latent_shape:
        raise CondistillError(
            f"the cache holds latents of {cache.latent_shape} and the teacher makes {family.latent_shape}"
        )
    student = with_guidance(_derive(run, name, directory, cache), family.denoiser, settings)
    if family.device.type == "cpu":
        student.denoiser.to(memory_format=torch.channels_last)
    if settings.tracker != "none":
        accelerator.init_trackers("condistill", config={"variant": name})
    sizes = {"teacher": _size(family, family.denoiser), "student": _size(family, student.denoiser)}
    if accelerator.is_main_process:
        teacher = recipe.variants[name].teacher
        taught = [f"taught by, and made of, the student {teacher!r} of this run"] if teacher else []
        described = {"kept": [*taught, *student.kept], "sizes": sizes}
        write_text(directory / STUDENT_NAME, json.dumps(described, indent=2) + "\n")
    trainer = Trainer(
        family,
        student,
        cache,
        pool,
        settings,
        seed=recipe.seed,
        directory=directory / "checkpoints",
        accelerator=accelerator,
    )
    sizes_told = " of the teacher's ".join(f"{sizes[who]['parameters']:,}" for who in ("student", "teacher"))
    run.say(f"{name}: {sizes_told} parameters; {settings.steps:,} steps")
    with track(run.console, name, settings.steps, unit="steps", quiet=not accelerator.is_main_process) as advance:
        done, stopwatch = 0, Stopwatch(directory)

        def on_step(step: int, record: dict[str, Any] | None) -> None:
            nonlocal done
            advance(step - done, f"loss {record['loss']:.4f}" if record else "")
            done = step
            if accelerator.is_main_process:
                stopwatch.on_step(step, checkpoint=step == trainer.saved_step)

        denoiser = trainer.run(on_step)
    if settings.tracker != "none":
        accelerator.end_training()
    if accelerator.is_main_process:
        save(run, name, denoiser)
    run.say(f"{name}: saved {run.pipeline_path(name)}")


def save(run: Compression, name: str, denoiser: nn.Module) -> None:
    """Write the pipeline of a variant, and beside it how it is meant to draw."""
    how = run.sampling(name)
    scheduler = how.scheduler(run.family)
    files = {SAMPLING_NAME: how.to_json()}
    save_pipeline(run.family, denoiser, run.pipeline_path(name), card=run.card(name), scheduler=scheduler, files=files)


def _derive(run: Compression, name: str, directory: Path, cache: LatentCache) -> Student:
    """The student of a variant; what was measured to choose it is kept in `directory`."""
    family, recipe = run.family, run.recipe
    student, settings = recipe.variant(name)
    student = settled(family, student, directory, run.accelerator)
    beside: dict[str, Any] = {
        "seed": recipe.seed,
        "batch_size": recipe.cache.batch_size,
        "guidance_range": settings.guidance_range,
    }
    importance = influence = None
    if student.importance != "weight_norm":
        importance = kept_importance(family, student.importance, cache, directory, run.accelerator, **beside)
    if student.depth is not None:
        influence = kept_influence(family, cache, directory, run.accelerator, **beside)
    return student_of(
        family.denoiser,
        student,
        channel_importance=importance,
        layer_scores=influence,
        seed=recipe.seed,
        may_be_as_large=settings.draws_cheaper,
        features=settings.features,
    )


def _size(family: Family, denoiser: Any) -> dict[str, int]:
    asked = macs(denoiser, size=family.latent_shape[1:], text_length=family.text_length)
    return {"parameters": parameters(denoiser), "macs": asked}
