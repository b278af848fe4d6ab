"""The evaluate stage: every model generates images of the same prompts from the same noise, and is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from condistill.config.recipe import TEACHER, Recipe
from condistill.distill import stage as distill_stage
from condistill.evaluate.costs import IMAGES_PER_STUDENT, Kind, Speeds, compute_record, sampling_record, size_record
from condistill.evaluate.engine import Engine
from condistill.evaluate.features import classifier_source, network_source
from condistill.evaluate.figures import (
    FinishedEvaluation,
    evaluation_record,
    groups_of_job,
    publish_metrics,
    write_figures,
)
from condistill.evaluate.image_values import Groups
from condistill.evaluate.measure import Scores
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.metrics.classifier import ImageClassifier, choose_classifier
from condistill.evaluate.networks.locate import locate_networks
from condistill.evaluate.networks.network import LocatedNetwork
from condistill.evaluate.prompt_sets import open_prompt_set
from condistill.evaluate.record import Evaluation, Grid, ModelRecord
from condistill.evaluate.reference_features import ReferenceTask
from condistill.evaluate.reference_images import ReferenceImages
from condistill.evaluate.results import Job, Results
from condistill.evaluate.rounds import choose_rounds
from condistill.evaluate.run_tasks import (
    diversity_tasks,
    latents_of,
    latents_of_reference,
    latents_of_several_seeds,
    measures_diversity,
    model_tasks,
    reference_names,
    reference_tasks,
)
from condistill.pipelines.sampling import planned_sampling
from condistill.run.context import Run
from condistill.run.stage_directory import StageDir
from condistill.teachers.files import PipelineFiles
from condistill.teachers.source import teacher_files
from condistill.utils.distributed import on_main_process
from condistill.utils.malloc import release_freed_memory

NAME = "evaluate"


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
    if measures_diversity(run.recipe.evaluate):
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
        groups = groups_of_job(open_prompt_set(run), job)
        write_figures(
            run,
            job,
            _figures(run),
            classifier=classifier,
            groups=groups,
            evaluation=lambda results: _evaluation(run, job, results, groups),
        )

    on_main_process(run.accelerator, measure)


def open(run: Run) -> FinishedEvaluation:
    """Return the evaluation, and copy `metrics.json` to the run directory, or to the folder of the protocol."""

    def copy() -> None:
        if run.accelerator.is_main_process:
            publish_metrics(_figures(run), run.results)

    run.once(NAME, copy)
    return FinishedEvaluation(_figures(run).path)


def measured(run: Run) -> tuple[Job, StageDir, Groups]:
    """Return the models of a finished evaluation, the directory of its figures, and the groups of its prompts."""
    job = _job(run)[0]
    return job, _figures(run), groups_of_job(open_prompt_set(run), job)


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
    diversity = diversity_tasks(settings, models, sources, lambda name: latents_of_several_seeds(run, name))
    reference = ReferenceTask.of(settings, sources, _hash_of(run))
    engine = Engine(run, settings, [*models, *references, *diversity.values()], reference)
    return Job(engine, rounds, models, references, diversity), classifier


def _evaluation(run: Run, job: Job, results: Results, groups: Groups) -> Evaluation:
    """Return the record of what was measured of a run."""
    settings = run.recipe.evaluate
    return evaluation_record(
        job,
        results,
        models=_records(run, results.scores),
        sampling=planned_sampling(run.recipe, None),
        dtype=run.family.dtype,
        networks={name: located.record(_hash_of(run), settings) for name, located in _networks(run).items()},
        groups=groups,
        quick=run.recipe.quick,
        baseline=baseline(run.recipe),
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
