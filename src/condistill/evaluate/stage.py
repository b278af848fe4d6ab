"""The evaluation stage of a run: every model draws the same prompts from the same noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from condistill.distill.history import train_sec
from condistill.errors import CondistillError
from condistill.evaluate.generate import ImageClassifier, Round, draw_round, measure, rounds, write_grid
from condistill.pipelines.sampling import Sampling
from condistill.profiling.forwards import compute
from condistill.profiling.macs import macs
from condistill.profiling.memory import peak_memory_gb
from condistill.profiling.timing import sec_per_image
from condistill.students.guidance import guidance_kind
from condistill.teachers.family import Family
from condistill.utils.atomic import write_text
from condistill.utils.meta import parameters
from condistill.utils.progress import track

if TYPE_CHECKING:
    from condistill.workflow.compress import Compression, Prompts

METRICS_FORMAT = 1


def evaluate_models(run: Compression, directory: Path, prompts: Prompts) -> None:
    """Draw, measure, and leave `metrics.json`, `grid.json` and the pictures of the report in `directory`."""
    from condistill.utils.hardware import machine

    recipe, settings, family = run.recipe, run.recipe.evaluate, run.family
    sampling = {"teacher": run.sampling(), **{name: run.sampling(name) for name in recipe.variants}}
    made = rounds(settings, prompts.choose, prompts.splits)
    classifier = choose_classifier(settings.classifier, made)
    denoisers: dict[str, nn.Module] = {"teacher": family.denoiser}
    denoisers |= {name: load_student(run, name) for name in recipe.variants}
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
    for name, costs in _costs(run, denoisers, sampling).items():
        models[name] |= costs
    first = made[0]
    grid = write_grid(directory / "grid", shown, first, per_split=settings.grid)
    write_text(directory / "grid.json", json.dumps(grid, indent=2, ensure_ascii=False) + "\n")
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
    write_text(directory / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def _costs(
    run: Compression, denoisers: Mapping[str, nn.Module], sampling: Mapping[str, Sampling]
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
                "denoiser_calls": how.denoiser_calls(denoiser),
            },
            "size": _size(denoiser, family),
            "speed": {
                "sec_per_image": times[name],
                "relative_time": times[name] / times["teacher"],
                "peak_memory_gb": peak_memory_gb(family, denoiser),
            },
        }
        if name in run.recipe.variants:
            costs[name]["compute"] = _training(run, name, denoisers)
    return costs


def _training(run: Compression, name: str, denoisers: Mapping[str, nn.Module]) -> dict[str, float]:
    """What a variant took to train, and those before it that it was made of; all share one cache."""
    cache = run.recipe.cache
    guided = Sampling(1, cache.guidance_scale).denoiser_calls(denoisers["teacher"]) == 2
    spent = []
    for each in (name, *run.recipe.teachers(name)):
        _, settings = run.recipe.variant(each)
        teacher: Any = denoisers[run.recipe.variants[each].teacher or "teacher"]
        told = guidance_kind(teacher) == "embedded"
        asked = compute(settings, cache, teacher_takes_guidance=told, cache_is_guided=guided)
        spent.append({**asked, "train_sec": train_sec(run.distill_path(each), settings.steps)})
    return {key: (max if key == "cache_forwards" else sum)(each[key] for each in spent) for key in spent[0]}


def load_student(run: Compression, name: str) -> nn.Module:
    """The denoiser of a finished pipeline, from safetensors."""
    family = run.family
    path = run.pipeline_path(name) / family.denoiser_name
    if not path.is_dir():
        raise CondistillError(f"there is no student at {path}; make it with `condistill distill RECIPE`")
    denoiser: nn.Module = type(family.denoiser).from_pretrained(path, use_safetensors=True)
    denoiser = denoiser.to(family.device, family.denoiser.dtype).eval().requires_grad_(False)
    if family.device.type == "cpu":
        denoiser = denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return denoiser


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
