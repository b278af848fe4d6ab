"""The distil stage of a run: derive a student, train it, and save its pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from condistill.atomic import write_text
from condistill.cache.latents import LatentCache
from condistill.distill.compute import Stopwatch
from condistill.distill.trainer import Trainer
from condistill.errors import CondistillError
from condistill.progress import track
from condistill.prompts.pool import PromptPool
from condistill.sampling import SAMPLING_NAME
from condistill.students.costs import macs, parameters
from condistill.students.derive import derive_student
from condistill.students.guidance import with_guidance
from condistill.students.importance import kept_importance
from condistill.students.influence import kept_influence
from condistill.students.target import settled
from condistill.teachers.family import Family

if TYPE_CHECKING:
    from condistill.compression import Compression

STUDENT_NAME = "student.json"


def distill_variant(run: Compression, name: str, directory: Path, cache: LatentCache, pool: PromptPool) -> None:
    """Train the variant `name` in `directory` and save it under the run's `pipelines/`."""
    recipe, family, accelerator = run.recipe, run.family, run.accelerator
    student_settings, settings = recipe.variant(name)
    if cache.latent_shape != family.latent_shape:
        raise CondistillError(
            f"the cache holds latents of {cache.latent_shape} and the teacher makes {family.latent_shape}"
        )
    student_settings = settled(family, student_settings, directory, accelerator)
    student = derive_student(
        family.denoiser,
        preset=student_settings.preset,
        width=student_settings.width,
        keep=student_settings.keep,
        depth=student_settings.depth,
        channel_importance=_importance(run, name, directory, cache),
        layer_scores=_influence(run, name, directory, cache),
        weights=student_settings.weights,
        seed=recipe.seed,
        may_be_as_large=settings.draws_cheaper,
        features=settings.features,
    )
    student = with_guidance(student, family.denoiser, settings)
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
    run.family.save(denoiser, run.pipeline_path(name), card=run.card(name), scheduler=scheduler, files=files)


def _importance(run: Compression, name: str, directory: Path, cache: LatentCache) -> dict[str, Tensor] | None:
    """What the channels of a variant's width are chosen by; None for the norm of their weights."""
    student, settings = run.recipe.variant(name)
    if student.importance == "weight_norm":
        return None
    return kept_importance(
        run.family,
        student.importance,
        cache,
        directory,
        run.accelerator,
        seed=run.recipe.seed,
        batch_size=run.recipe.cache.batch_size,
        guidance_range=settings.guidance_range,
    )


def _influence(run: Compression, name: str, directory: Path, cache: LatentCache) -> dict[str, list[float]] | None:
    """What a variant's depth is chosen by; None where nothing is to be chosen, or nothing is cached."""
    student, settings = run.recipe.variant(name)
    if student.depth is None:
        return None
    return kept_influence(
        run.family,
        cache,
        directory,
        run.accelerator,
        seed=run.recipe.seed,
        batch_size=run.recipe.cache.batch_size,
        guidance_range=settings.guidance_range,
    )


def _size(family: Family, denoiser: Any) -> dict[str, int]:
    asked = macs(denoiser, size=family.latent_shape[1:], text_length=family.text_length)
    return {"parameters": parameters(denoiser), "macs": asked}
