"""The evaluate stage: every model generates images of the same prompts from the same noise, and is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from condistill.config.recipe import TEACHER, Recipe
from condistill.distill import stage as distill_stage
from condistill.distill.stage import DistilledVariant
from condistill.evaluate.costs import compute_record, sampling_record, size_record, speed_records
from condistill.evaluate.generate import Round, choose_rounds, generate_round
from condistill.evaluate.measure import Measurement, PictureGrid, Scores
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.metrics.classifier import choose_classifier
from condistill.evaluate.record import GRID_NAME, METRICS_NAME, Evaluation, Grid, ModelRecord, ReferenceRecord
from condistill.evaluate.references import OTHER_SEED, REFERENCE_PROMPTS, References, reference_names, untrained
from condistill.pipelines.sampling import Sampling, planned_sampling
from condistill.profiling.timing import fewest_images
from condistill.prompts import stage as prompts_stage
from condistill.run.context import Run
from condistill.run.stage_directory import StageDir
from condistill.teachers.files import PipelineFiles
from condistill.teachers.source import teacher_files
from condistill.utils.atomic import write_text
from condistill.utils.distributed import on_main_process
from condistill.utils.hardware import device_name

NAME = "evaluate"
_GRID_FOLDER = "grid"


@dataclass(frozen=True)
class FinishedEvaluation:
    """The result of the stage."""

    directory: Path

    def evaluation(self) -> Evaluation:
        """Return every figure."""
        return Evaluation.load(self.directory)

    def grid(self) -> Grid:
        """Return which images the report shows; their files are in `grid_folder`."""
        return Grid.load(self.directory)

    @property
    def grid_folder(self) -> Path:
        """The folder of the images that the report shows."""
        return self.directory / _GRID_FOLDER

    def images(self) -> list[Path]:
        """Return the files of the images that the report shows."""
        rows = [entry for entries in self.grid().splits.values() for entry in entries]
        return [self.grid_folder / name for row in rows for name in row.images.values()]


def _figures(run: Run) -> StageDir:
    """Return the directory of the figures and of the report's images, which cost little once latents are there."""
    directory = run.stage("evaluation/figures", lambda: _figure_inputs(run))
    directory.is_costly = False
    return directory


def _figure_inputs(run: Run) -> dict[str, Any]:
    formats = [kind.model_fields["format"].default for kind in (Evaluation, Grid)]
    return {
        **{name: _latents(run, name).key for name in (TEACHER, *run.recipe.variants)},
        **{name: _reference(run, name).key for name in reference_names(run.recipe)},
        "variants": list(run.recipe.variants),
        "evaluate.classifier": run.recipe.evaluate.classifier,
        "evaluate.grid": run.recipe.evaluate.grid,
        "metrics": list(METRICS),
        "formats": formats,
    }


def _latents(run: Run, name: str) -> StageDir:
    """Return the directory of the latents that a model generates."""
    return run.stage(f"evaluation/latents/{name}", lambda: _latent_inputs(run, name))


def _reference(run: Run, name: str) -> StageDir:
    """Return the directory of the latents of a reference model; they cost little."""
    directory = run.stage(f"evaluation/latents/{name}", lambda: _reference_inputs(run, name))
    directory.is_costly = False
    return directory


def _reference_inputs(run: Run, name: str) -> dict[str, Any]:
    model = TEACHER if name == OTHER_SEED else next(each for each in run.recipe.variants if untrained(each) == name)
    return {**_latent_inputs(run, model), "reference": name, "prompts": REFERENCE_PROMPTS}


def _latent_inputs(run: Run, name: str) -> dict[str, Any]:
    settings, sampling = run.recipe.evaluate, planned_sampling(run.recipe, None if name == TEACHER else name)
    model = (
        run.teacher_inputs
        if name == TEACHER
        else {f"{distill_stage.NAME}/{name}": distill_stage.variant_key(run, name)}
    )
    return {
        prompts_stage.NAME: prompts_stage.key(run),
        **model,
        "evaluate.prompts_per_split": settings.prompts_per_split,
        "evaluate.seeds": list(settings.seeds),
        "evaluate.num_inference_steps": sampling.num_inference_steps,
        "evaluate.guidance_scale": sampling.guidance_scale,
    }


def key(run: Run) -> str:
    """Return the hash of the students, of all settings that change figures, and of the metrics."""
    return _figures(run).key


def is_done(run: Run) -> bool:
    """Return whether the figures, the images of the report and the latents exist."""
    latents = [_latents(run, name).is_done() for name in (TEACHER, *run.recipe.variants)]
    return _figures(run).is_done() and all(latents)


def make(run: Run) -> None:
    """Measure teacher and students, on the main process."""

    def measure() -> None:
        path = _figures(run).begin_again()
        _evaluate(run, path)
        images = FinishedEvaluation(path).images()
        _figures(run).finish([path / METRICS_NAME, path / GRID_NAME, *images])

    on_main_process(run.accelerator, measure)


def open(run: Run) -> FinishedEvaluation:
    """Return the evaluation, and copy `metrics.json` to the run directory."""

    def copy() -> None:
        if run.accelerator.is_main_process:
            text = (_figures(run).path / METRICS_NAME).read_text(encoding="utf-8")
            write_text(run.path / METRICS_NAME, text)

    run.once(NAME, copy)
    return FinishedEvaluation(_figures(run).path)


def baseline(recipe: Recipe) -> str | None:
    """Return the first variant of plain distillation, p(u) = 0; None if the recipe has none."""
    return next((name for name in recipe.variants if not _replaces_prompts(recipe, name)), None)


def _replaces_prompts(recipe: Recipe, name: str) -> bool:
    return recipe.variant(name)[1].conditioning.probability.replaces_prompts


def _evaluate(run: Run, directory: Path) -> None:
    """Generate, measure, and write the figures and the images of the report to `directory`."""
    recipe, settings, family = run.recipe, run.recipe.evaluate, run.family
    variants, prompts = distill_stage.open(run), prompts_stage.open(run)
    rounds = choose_rounds(settings, prompts.choose, prompts.splits)
    classifier = choose_classifier(settings.classifier, [prompt for each in rounds for prompt in each.prompts])
    sampling = {name or TEACHER: planned_sampling(recipe, name) for name in (None, *variants)}
    denoisers: dict[str, nn.Module] = {TEACHER: family.denoiser}
    with run.working("evaluate: loading the students", after_sec=2.0):
        denoisers |= {name: variant.load(family) for name, variant in variants.items()}
    latents = _generate(run, denoisers, sampling, rounds)
    references = _measure_references(run, variants, latents[TEACHER][0], sampling, rounds[0])
    grid = PictureGrid(directory / _GRID_FOLDER, rounds[0], per_split=settings.grid)
    total = len(denoisers) * sum(len(each.prompts) for each in rounds)
    with run.progress("evaluate: decoding and measuring", total, unit="images") as advance:
        scores = Measurement(
            rounds,
            family.decode,
            batch_size=settings.batch_size,
            classifier=classifier,
            grid=grid,
            on_images=advance,
        ).measure(latents)
    grid.record().write(directory / GRID_NAME)
    Evaluation(
        quick=recipe.quick,
        classifier=settings.classifier,
        baseline=baseline(recipe),
        seeds=settings.seeds,
        images_per_split={split: sum(each.count(split) for each in rounds) for split in rounds[0].splits},
        num_inference_steps=sampling[TEACHER].num_inference_steps,
        guidance_scale=sampling[TEACHER].guidance_scale,
        device=device_name(),
        dtype=str(family.dtype).removeprefix("torch."),
        torch=torch.__version__,
        models=_records(run, variants, denoisers, sampling, scores),
        references=references,
    ).write(directory / METRICS_NAME)


def _measure_references(
    run: Run,
    variants: Mapping[str, DistilledVariant],
    teacher_latents: NDArray[Any],
    sampling: Mapping[str, Sampling],
    first: Round,
) -> ReferenceRecord:
    """Measure what the distances to the teacher are compared with.

    Args:
        teacher_latents: the teacher's latents of the first round.
    """
    head = first.head(REFERENCE_PROMPTS)
    total = len(reference_names(run.recipe)) * len(head.prompts)
    with run.progress("evaluate: references", total, unit="images") as advance:
        return References(
            run.family,
            head,
            run.family.decode,
            run.recipe.evaluate.batch_size,
            directory=lambda name: _reference(run, name),
            say=partial(run.say, style="yellow"),
            on_images=advance,
        ).record(
            teacher_latents[list(head.numbers)],
            {name: variant.initial for name, variant in variants.items()},
            sampling,
        )


def _generate(
    run: Run, denoisers: Mapping[str, nn.Module], sampling: Mapping[str, Sampling], rounds: Sequence[Round]
) -> dict[str, list[NDArray[Any]]]:
    """Return the latents of every model and round; they are kept in one directory per model."""
    latents: dict[str, list[NDArray[Any]]] = {name: [] for name in denoisers}
    total = len(denoisers) * sum(len(each.prompts) for each in rounds)
    with run.progress("evaluate", total, unit="images") as advance:
        for name, denoiser in denoisers.items():
            directory = _latents(run, name)
            is_done = directory.is_done()
            folder = directory.path if is_done else directory.begin()
            for each in rounds:
                generated = generate_round(
                    folder / f"seed-{each.seed}.arrow",
                    run.family,
                    denoiser,
                    each,
                    model=name,
                    batch_size=run.recipe.evaluate.batch_size,
                    sampling=sampling[name],
                    on_images=partial(advance, note=name),
                    on_found=partial(advance, note=name, found=True),
                )
                latents[name].append(generated)
            if not is_done:
                directory.finish()
    return latents


def _records(
    run: Run,
    variants: Mapping[str, DistilledVariant],
    denoisers: Mapping[str, nn.Module],
    sampling: Mapping[str, Sampling],
    scores: Mapping[str, Scores],
) -> dict[str, ModelRecord]:
    """Return scores and costs of every model."""
    recipe, family = run.recipe, run.family
    with run.progress("evaluate: timing", fewest_images(denoisers, sampling), unit="images") as advance:
        speed = speed_records(family, denoisers, sampling, on_image=lambda left_out=False: advance(1, found=left_out))
    files = {TEACHER: teacher_files(run.teacher)}
    files |= {name: PipelineFiles.read(variant.pipeline) for name, variant in variants.items()}
    train_sec = {name: variant.train_sec(recipe.variant(name)[1].steps) for name, variant in variants.items()}
    return {
        name: ModelRecord(
            scores=scores[name],
            sampling=sampling_record(sampling[name], denoiser),
            size=size_record(denoiser, family, files[name]),
            speed=speed[name],
            compute=compute_record(recipe, name, denoisers, train_sec) if name in variants else None,
        )
        for name, denoiser in denoisers.items()
    }
