"""The evaluate stage: every model generates images of the same prompts from the same noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condistill.distill import stage as distill_stage
from condistill.distill.stage import DistilledVariant
from condistill.errors import CondistillError
from condistill.evaluate.generate import ImageClassifier, Round, draw_round, measure, rounds, write_grid
from condistill.pipelines.sampling import Sampling, planned_sampling
from condistill.profiling.forwards import compute
from condistill.profiling.macs import macs
from condistill.profiling.memory import peak_memory_gb
from condistill.profiling.timing import sec_per_image
from condistill.prompts import stage as prompts_stage
from condistill.run.context import Run
from condistill.run.directory import StageDir
from condistill.students.guidance import guidance_kind
from condistill.teachers.family import Family
from condistill.utils.atomic import write_text
from condistill.utils.distributed import on_main_process
from condistill.utils.hardware import machine
from condistill.utils.meta import parameters
from condistill.utils.progress import track

NAME = "evaluate"
METRICS_FORMAT = 1
METRICS_NAME, GRID_NAME, GRID_FOLDER = "metrics.json", "grid.json", "grid"


def _directory(run: Run) -> StageDir:
    settings, cache = run.recipe.evaluate.model_dump(), run.recipe.cache
    return run.stage("evaluation", distill_stage.key(run), settings, cache.num_inference_steps, cache.guidance_scale)


def key(run: Run) -> str:
    """Return the hash of the students and of all settings that change figures."""
    return _directory(run).key


def is_done(run: Run) -> bool:
    """Return whether the figures and the images of the report exist."""
    return _directory(run).is_done(METRICS_NAME, GRID_NAME)


def make(run: Run) -> None:
    """Measure teacher and students, on the main process."""
    directory = _directory(run)

    def evaluate() -> None:
        directory.begin()
        _evaluate(run, directory.path)
        directory.finish()

    on_main_process(run.accelerator, evaluate)


def open(run: Run) -> Path:
    """Return the directory of the figures, and copy `metrics.json` to the run directory."""

    def copy() -> None:
        text = (_directory(run).path / METRICS_NAME).read_text(encoding="utf-8")
        write_text(run.path / METRICS_NAME, text)

    run.once(NAME, lambda: on_main_process(run.accelerator, copy))
    return _directory(run).path


def _evaluate(run: Run, directory: Path) -> None:
    """Generate, measure, and write the figures and the images of the report to `directory`."""

    recipe, settings, family = run.recipe, run.recipe.evaluate, run.family
    variants, prompts = distill_stage.open(run), prompts_stage.open(run)
    sampling = {"teacher": planned_sampling(recipe, None)}
    sampling |= {name: planned_sampling(recipe, name) for name in variants}
    made = rounds(settings, prompts.choose, prompts.splits)
    classifier = choose_classifier(settings.classifier, made)
    denoisers: dict[str, nn.Module] = {"teacher": family.denoiser}
    denoisers |= {name: variant.load(family) for name, variant in variants.items()}
    total = len(denoisers) * sum(len(this.prompts) for this in made)
    drawn: dict[str, list[Any]] = {name: [] for name in denoisers}
    with track(run.console, "evaluate", total, unit="images") as advance:
        for name, denoiser in denoisers.items():
            for this in made:
                latents = draw_round(
                    directory / f"{name}-seed{this.seed}.arrow",
                    family,
                    denoiser,
                    this,
                    batch_size=settings.batch_size,
                    sampling=sampling[name],
                    on_images=partial(advance, note=name),
                )
                drawn[name].append(latents)
    models, shown = measure(drawn, family, made, settings, classifier)
    for name, costs in _costs(run, variants, denoisers, sampling).items():
        models[name] |= costs
    first = made[0]
    grid = write_grid(directory / GRID_FOLDER, shown, first, per_split=settings.grid)
    write_text(directory / GRID_NAME, json.dumps(grid, indent=2, ensure_ascii=False) + "\n")
    metrics = {
        "format": METRICS_FORMAT,
        "classifier": settings.classifier,
        "seeds": list(settings.seeds),
        "images_per_split": {
            split: sum(this.splits[split].stop - this.splits[split].start for this in made) for split in first.splits
        },
        "num_inference_steps": sampling["teacher"].num_inference_steps,
        "guidance_scale": sampling["teacher"].guidance_scale,
        "device": machine(),
        "torch": torch.__version__,
        "models": models,
    }
    write_text(directory / METRICS_NAME, json.dumps(metrics, indent=2) + "\n")


def _costs(
    run: Run,
    variants: Mapping[str, DistilledVariant],
    denoisers: Mapping[str, nn.Module],
    sampling: Mapping[str, Sampling],
) -> dict[str, dict[str, Any]]:
    """What every model takes to store, to draw with and, where it was trained here, to train."""
    family = run.family
    times = sec_per_image(family, denoisers, sampling)
    costs: dict[str, dict[str, Any]] = {}
    for name, denoiser in denoisers.items():
        how = sampling[name]
        costs[name] = {
            "sampling": {
                "num_inference_steps": how.num_inference_steps,
                "guidance_scale": how.guidance_scale,
                "denoiser_calls": how.denoiser_evaluations(denoiser),
            },
            "size": _size(denoiser, family),
            "speed": {
                "sec_per_image": times[name],
                "relative_time": times[name] / times["teacher"],
                "peak_memory_gb": peak_memory_gb(family, denoiser),
            },
        }
        if name in variants:
            costs[name]["compute"] = _training(run, name, variants, denoisers)
    return costs


def _training(
    run: Run, name: str, variants: Mapping[str, DistilledVariant], denoisers: Mapping[str, nn.Module]
) -> dict[str, float]:
    """What a variant took to train, and those before it that it was made of; all share one cache."""
    cache = run.recipe.cache
    guided = Sampling(1, cache.guidance_scale).denoiser_evaluations(denoisers["teacher"]) == 2
    spent = []
    for each in (name, *run.recipe.teachers(name)):
        _, settings = run.recipe.variant(each)
        teacher: Any = denoisers[run.recipe.variants[each].teacher or "teacher"]
        told = guidance_kind(teacher) == "embedded"
        asked = compute(settings, cache, teacher_takes_guidance=told, cache_is_guided=guided)
        spent.append({**asked, "train_sec": variants[each].train_sec(settings.steps)})
    return {key: (max if key == "cache_forwards" else sum)(each[key] for each in spent) for key in spent[0]}


def choose_classifier(name: str, made: list[Round]) -> ImageClassifier | None:
    """The classifier of `evaluate.classifier`.

    Raises:
        CondistillError: a prompt is not of the classifier's world.
    """
    if name == "none":
        return None
    from condistill.miniature.classifier import MiniatureClassifier
    from condistill.miniature.world import parse

    for this in made:
        for prompt in this.prompts:
            try:
                parse(prompt)
            except ValueError as error:
                raise CondistillError(f"evaluate.classifier is 'miniature', and {error}; set it to 'none'") from error
    return MiniatureClassifier()


def _size(denoiser: Any, family: Family) -> dict[str, int]:
    return {
        "parameters": parameters(denoiser),
        "macs": macs(denoiser, size=family.latent_shape[1:], text_length=family.text_length),
        "bytes": sum(p.numel() * p.element_size() for p in denoiser.parameters()),
    }
