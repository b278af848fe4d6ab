"""The evaluate stage: every model generates images of the same prompts from the same noise, and is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condistill.config.recipe import TEACHER, Recipe
from condistill.distill import stage as distill_stage
from condistill.evaluate.costs import IMAGES_PER_STUDENT, Kind, Speeds, compute_record, sampling_record, size_record
from condistill.evaluate.engine import Engine
from condistill.evaluate.features import classifier_source, network_source
from condistill.evaluate.grid import PictureGrid
from condistill.evaluate.image_values import IMAGES_NAME, Groups
from condistill.evaluate.measure import Scores
from condistill.evaluate.merge_scores import images_of, merge_again
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.metrics.classifier import ImageClassifier, choose_classifier
from condistill.evaluate.networks.locate import locate_networks
from condistill.evaluate.networks.network import LocatedNetwork
from condistill.evaluate.prompt_sets import groups_of, open_prompt_set
from condistill.evaluate.record import GRID_NAME, METRICS_NAME, Evaluation, Grid, ModelRecord, ReferenceRecord
from condistill.evaluate.reference_features import ReferenceTask
from condistill.evaluate.reference_images import ReferenceImages
from condistill.evaluate.results import Job, Measuring, Results, reference_record
from condistill.evaluate.rounds import choose_rounds
from condistill.evaluate.run_tasks import (
    OTHER_SEED,
    diversity_tasks,
    latents_of,
    latents_of_reference,
    latents_of_several_seeds,
    measures_diversity,
    model_tasks,
    reference_names,
    reference_tasks,
    untrained,
)
from condistill.pipelines.sampling import planned_sampling
from condistill.run.context import Run
from condistill.run.stage_directory import StageDir
from condistill.teachers.files import PipelineFiles
from condistill.teachers.source import teacher_files
from condistill.utils.atomic import write_text
from condistill.utils.distributed import on_main_process
from condistill.utils.hardware import device_name
from condistill.utils.malloc import release_freed_memory

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
    def image_values(self) -> Path:
        """The table of the values of every image."""
        return self.directory / IMAGES_NAME

    @property
    def grid_folder(self) -> Path:
        """The folder of the images that the report shows."""
        return self.directory / _GRID_FOLDER

    def images(self) -> list[Path]:
        """Return the files of the images that the report shows."""
        grid = self.grid()
        rows = [*(entry for entries in grid.splits.values() for entry in entries), *grid.worst, *grid.best]
        return [self.grid_folder / name for name in dict.fromkeys(name for row in rows for name in row.images.values())]


def _figures(run: Run) -> StageDir:
    """Return the directory of the figures and of the report's images, which cost little once latents are there."""
    directory = run.stage("evaluation/figures", lambda: _figure_inputs(run))
    directory.is_costly = False
    return directory


def _figure_inputs(run: Run) -> dict[str, Any]:
    formats = [kind.model_fields["format"].default for kind in (Evaluation, Grid)]
    settings = run.recipe.evaluate
    models = (TEACHER, *run.recipe.variants)
    inputs = {
        **{name: latents_of(run, name).key for name in models},
        **{name: latents_of_reference(run, name).key for name in reference_names(run.recipe)},
        "variants": list(run.recipe.variants),
        "evaluate.classifier": settings.classifier,
        "evaluate.grid": settings.grid,
        "metrics": list(METRICS),
        "formats": formats,
    }
    if measures_diversity(run.recipe):
        inputs |= {f"{name} from several seeds": latents_of_several_seeds(run, name).key for name in models}
    if networks := _networks(run):
        inputs |= {f"evaluate.networks.{name}": located.inputs(_hash_of(run)) for name, located in networks.items()}
        inputs |= {"evaluate.resize": settings.resize, "evaluate.resize_filter": settings.resize_filter}
    if settings.category_column is not None:
        inputs["evaluate.category_column"] = settings.category_column
    if settings.reference is not None:
        inputs["evaluate.reference"] = _reference_images(run).inputs(_hash_of(run))
    return inputs


def _networks(run: Run) -> dict[str, LocatedNetwork]:
    """Return the networks of the recipe, which are found but not loaded."""

    def locate() -> dict[str, LocatedNetwork]:
        with run.working("evaluate: finding or downloading networks", after_sec=2.0):
            return locate_networks(run.recipe.evaluate.networks)

    return run.once("evaluate/networks", locate)


def _reference_images(run: Run) -> ReferenceImages:
    """Return the images of `evaluate.reference`."""
    settings = run.recipe.evaluate
    assert settings.reference is not None
    return run.once("evaluate/reference", lambda: ReferenceImages.open(settings.reference or "", settings))


def _hash_of(run: Run) -> Any:
    return run.directory.hashes.of


def key(run: Run) -> str:
    """Return the hash of the students, of all settings that change figures, and of the metrics."""
    return _figures(run).key


def is_done(run: Run) -> bool:
    """Return whether the figures, the images of the report and the latents exist."""
    latents = [latents_of(run, name).is_done() for name in (TEACHER, *run.recipe.variants)]
    return _figures(run).is_done() and all(latents)


def make(run: Run) -> None:
    """Generate images and extract their features in every process, and measure them on the main process."""
    job, classifier = _job(run)
    job.engine.run()

    def measure() -> None:
        path = _figures(run).begin_again()
        _evaluate(run, job, classifier, path)
        merge_again(run, job, path, _groups(run, job))
        files = [path / METRICS_NAME, path / GRID_NAME, path / IMAGES_NAME, *FinishedEvaluation(path).images()]
        _figures(run).finish(files)

    on_main_process(run.accelerator, measure)


def open(run: Run) -> FinishedEvaluation:
    """Return the evaluation, and copy `metrics.json` to the run directory, or to the folder of the protocol."""

    def copy() -> None:
        if run.accelerator.is_main_process:
            text = (_figures(run).path / METRICS_NAME).read_text(encoding="utf-8")
            write_text(run.results / METRICS_NAME, text)

    run.once(NAME, copy)
    return FinishedEvaluation(_figures(run).path)


def measured(run: Run) -> tuple[Job, StageDir, Groups]:
    """Return the models of a finished evaluation, the directory of its figures, and the groups of its prompts."""
    job = _job(run)[0]
    return job, _figures(run), _groups(run, job)


def baseline(recipe: Recipe) -> str | None:
    """Return the first variant of plain distillation, p(u) = 0; None if the recipe has none."""
    return next((name for name in recipe.variants if not _replaces_prompts(recipe, name)), None)


def _replaces_prompts(recipe: Recipe, name: str) -> bool:
    return recipe.variant(name)[1].conditioning.probability.replaces_prompts


def _job(run: Run) -> tuple[Job, ImageClassifier | None]:
    """Return the models to measure, and the classifier."""
    settings, prompts, variants = run.recipe.evaluate, open_prompt_set(run), distill_stage.open(run)
    rounds = choose_rounds(settings, prompts.choose, prompts.splits)
    classifier = choose_classifier(settings.classifier, [prompt for each in rounds for prompt in each.prompts])
    sources = [network_source(located, _hash_of(run)) for located in _networks(run).values()]
    if classifier is not None:
        sources.append(classifier_source(settings.classifier, classifier))
    models = model_tasks(run, variants, rounds, sources)
    references = reference_tasks(run, variants, rounds[0], sources)
    diversity = diversity_tasks(run, models, sources)
    reference = ReferenceTask.of(settings, sources, _hash_of(run))
    engine = Engine(run, settings, [*models, *references, *diversity.values()], reference)
    return Job(engine, rounds, models, references, diversity), classifier


def _evaluate(run: Run, job: Job, classifier: ImageClassifier | None, directory: Path) -> None:
    """Measure, and write the figures and the images of the report to `directory`."""
    recipe, settings, rounds = run.recipe, run.recipe.evaluate, job.rounds
    sampling = planned_sampling(recipe, None)
    if classifier is not None:
        job = replace(job, true_features=[classifier.reference(each.prompts, seed=each.seed) for each in rounds])
    with run.progress("evaluate: measuring", job.images, unit="images") as advance:
        job = replace(job, on_images=lambda count, model: advance(count, note=model))
        results = Measuring(job, directory).results(
            lambda ranking: PictureGrid(directory / _GRID_FOLDER, rounds, settings.grid, ranking)
        )
    results.grid.write(directory / GRID_NAME)
    results.values.write(directory / IMAGES_NAME)
    Evaluation(
        quick=recipe.quick,
        classifier=settings.classifier,
        baseline=baseline(recipe),
        seeds=settings.seeds,
        images_per_split={split: sum(each.count(split) for each in rounds) for split in rounds[0].splits},
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        device=device_name(),
        dtype=str(run.family.dtype).removeprefix("torch."),
        torch=torch.__version__,
        models=_records(run, results.scores),
        references=_reference_record(run, job, results),
        networks={name: located.record(_hash_of(run), settings) for name, located in _networks(run).items()},
        reference_images=reference_record(job),
        comparisons=tuple(results.values.comparisons()),
        groups=results.values.groups(_groups(run, job)),
    ).write(directory / METRICS_NAME)


def _groups(run: Run, job: Job) -> Groups:
    """Return the groups of the prompts."""
    return groups_of(open_prompt_set(run), ((each.seed, each.number, each.prompt) for each in images_of(job.rounds)))


def _reference_record(run: Run, job: Job, results: Results) -> ReferenceRecord:
    """Return what the distances to the teacher are compared with."""
    (head,) = job.references[0].rounds
    return ReferenceRecord(
        images_per_split={split: head.count(split) for split in head.splits},
        other_seed=results.references.get(OTHER_SEED, {}),
        untrained={name: results.references.get(untrained(name), {}) for name in run.recipe.variants},
    )


def _records(run: Run, scores: Mapping[str, Scores]) -> dict[str, ModelRecord]:
    """Return scores and costs of every model; one student at a time is in memory, with the teacher."""
    recipe, family, variants = run.recipe, run.family, distill_stage.open(run)
    sampling = {name or TEACHER: planned_sampling(recipe, name) for name in (None, *variants)}
    train_sec = {name: variant.train_sec(recipe.variant(name)[1].steps) for name, variant in variants.items()}
    kinds = {TEACHER: Kind.of(family.denoiser)}
    records: dict[str, ModelRecord] = {}
    total = len(variants) * IMAGES_PER_STUDENT
    with run.progress("evaluate: timing", total, unit="images") as advance:
        speeds = Speeds(family, sampling[TEACHER], on_image=lambda left_out=False: advance(1, found=left_out))

        def record(name: str, denoiser: nn.Module, files: PipelineFiles) -> ModelRecord:
            is_teacher = name == TEACHER
            return ModelRecord(
                scores=scores[name],
                sampling=sampling_record(sampling[name], denoiser),
                size=size_record(denoiser, family, files),
                speed=speeds.of_teacher() if is_teacher else speeds.of_student(denoiser, sampling[name]),
                compute=None if is_teacher else compute_record(recipe, name, kinds, train_sec),
            )

        for name, variant in variants.items():
            denoiser = variant.load(family)
            kinds[name] = Kind.of(denoiser)
            records[name] = record(name, denoiser, PipelineFiles.read(variant.pipeline))
            del denoiser
            release_freed_memory()
        return {TEACHER: record(TEACHER, family.denoiser, teacher_files(run.teacher)), **records}
