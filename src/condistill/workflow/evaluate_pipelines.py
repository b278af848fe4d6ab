"""Evaluate finished pipelines of any origin and family: same prompts, same noise, one table and one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from condistill.config.evaluate import EvaluateSettings
from condistill.config.recipe import TEACHER
from condistill.config.sections import MINIATURE
from condistill.evaluate.costs import Speeds, sampling_record, size_record
from condistill.evaluate.engine import Engine, Task
from condistill.evaluate.features import FeatureSource, classifier_source, network_source
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
from condistill.evaluate.metrics.metric import ImageKey
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.networks.locate import check_evaluation_files, locate_networks
from condistill.evaluate.networks.network import LocatedNetwork
from condistill.evaluate.prompt_sets import FilePrompts
from condistill.evaluate.record import Evaluation, Grid, ModelRecord
from condistill.evaluate.reference_features import ReferenceTask
from condistill.evaluate.results import Job, Results
from condistill.evaluate.rounds import Round, choose_rounds
from condistill.evaluate.run_tasks import (
    LATENTS,
    OTHER_SEED,
    REFERENCE_PROMPTS,
    diversity_tasks,
    reference_task,
    several_seeds,
)
from condistill.report.html import write_report
from condistill.report.inputs import ReportInputs
from condistill.report.stage import REPORT_NAME
from condistill.run.stage_directory import StageDir
from condistill.teachers.load import teacher_inputs
from condistill.teachers.skeleton import teacher_skeleton
from condistill.teachers.source import teacher_files
from condistill.utils.distributed import from_main_process, on_main_process
from condistill.utils.hashing import key_of
from condistill.utils.quiet import quiet_libraries
from condistill.utils.randomness import Stream
from condistill.utils.registry import load_plugins
from condistill.workflow.after_evaluation import Evaluated, Extras, check_extras, check_is_evaluated, finish_extras
from condistill.workflow.evaluation_table import print_evaluation
from condistill.workflow.pipeline_models import PipelineLoader, PipelineModel, find_pipelines, latent_space
from condistill.workflow.pipelines_host import PipelinesHost


def evaluate_pipelines(
    sources: Sequence[str],
    settings: EvaluateSettings,
    out: Path,
    *,
    teacher: str | None = None,
    extras: Extras = Extras(),  # noqa: B008 - frozen
    update: bool = False,
    console: Console | None = None,
) -> Path:
    """Evaluate finished pipelines on the prompts of `settings.prompt_files`, and return the folder of the results.

    The first pipeline, or the one that is named, is the teacher that the others are compared with. The folder has
    `metrics.json` and `report.html`; an evaluation that was stopped is resumed.

    Args:
        sources: directories, hub names, safetensors files or `miniature`.
        teacher: one of the sources.
        extras: scores of other programs, and where to write the images.
        update: where inputs changed since results were made, make them again.

    Raises:
        CondistillError: says what was given, what is allowed and what to do; nothing was loaded or written then.
    """
    with quiet_libraries():
        load_plugins()
        models = find_pipelines(sources, settings, teacher=teacher)
        content = check_extras(extras, [model.name for model in models])
        check_is_evaluated(extras, out, "condistill evaluate PIPELINE... --prompts FILE")
        check_evaluation_files(settings)
        networks = locate_networks(settings.networks)
        with PipelinesHost(out, console=console or Console(stderr=True)) as host:
            prompts = FilePrompts.read(settings, miniature=settings.classifier == MINIATURE, say=host.say)
            _check_prompts(models, prompts)
            work = _Work(host, settings, models, networks, prompts)
            host.claim_directory()
            work.job  # noqa: B018 - made on every process, which exchange what only the main process reads
            on_main_process(host.accelerator, work.describe)
            host.open_directory(work.settings_text(), update=update)
            _say_models(host, models)
            work.make()
            finish_extras(host, Evaluated(work.job, work.figures, work.groups), extras, content)
            on_main_process(host.accelerator, lambda: _write_report(host, work))
        return out


def _check_prompts(models: Sequence[PipelineModel], prompts: FilePrompts) -> None:
    """Check that every pipeline can encode all prompts; most families read any text."""
    for model in models:
        teacher_skeleton(model.settings, only_sampled=True).family.check_prompts(prompts)


def _say_models(host: PipelinesHost, models: Sequence[PipelineModel]) -> None:
    for model in models:
        sampling = model.sampling
        role = "the teacher" if model.name == TEACHER else "compared with it"
        host.say(
            f"{model.label}: {model.settings.pipeline} ({role}), {sampling.num_inference_steps} steps, guidance "
            f"{sampling.guidance_scale:g}"
        )


@dataclass
class _Work:
    """The evaluation: its directories and tasks, and what is measured."""

    host: PipelinesHost
    settings: EvaluateSettings
    models: Sequence[PipelineModel]
    networks: Mapping[str, LocatedNetwork]
    prompts: FilePrompts

    def settings_text(self) -> dict[str, Any]:
        """Return what is kept about the evaluation."""
        return {
            "pipelines": {model.name: model.settings.pipeline for model in self.models},
            "evaluate": self.settings.model_dump(mode="json"),
        }

    @cached_property
    def loader(self) -> PipelineLoader:
        """Loads one pipeline at a time."""
        return PipelineLoader(self.host.accelerator.device)

    @cached_property
    def rounds(self) -> list[Round]:
        """The prompts of every seed."""
        return choose_rounds(self.settings, self.prompts.choose, self.prompts.splits)

    @cached_property
    def classifier(self) -> ImageClassifier | None:
        """The classifier of the settings."""
        return choose_classifier(self.settings.classifier, [prompt for each in self.rounds for prompt in each.prompts])

    @cached_property
    def sources(self) -> list[FeatureSource]:
        """The networks and the classifier that read the images."""
        found = [network_source(located, self.host.directory.hashes.of) for located in self.networks.values()]
        return found + ([classifier_source(self.settings.classifier, self.classifier)] if self.classifier else [])

    def files(self, model: PipelineModel) -> dict[str, Any]:
        """Return what the outputs of a pipeline depend on: the content of its files."""
        hashes = self.host.directory.hashes
        return teacher_inputs(model.settings, self.host.accelerator.device, hash_of=hashes.of)

    def latents(self, model: PipelineModel, name: str, **others: Any) -> StageDir:
        """Return the directory of the latents of a pipeline."""
        sampling = model.sampling

        def inputs() -> dict[str, Any]:
            return {
                **{key.replace("teacher", "pipeline", 1): value for key, value in self.files(model).items()},
                "prompts": key_of([[each.seed, each.prompts] for each in self.rounds]),
                "evaluate.num_inference_steps": sampling.num_inference_steps,
                "evaluate.guidance_scale": sampling.guidance_scale,
                **others,
            }

        directory = self.host.stage(f"{LATENTS}/{name}", inputs)
        directory.is_costly = name == model.name
        return directory

    def evaluated(self, model: PipelineModel) -> EvaluatedModel:
        """Return a pipeline as the engine measures it."""
        space = from_main_process(self.host.accelerator, lambda: latent_space(self.files(model)))
        family = partial(self.loader.load, model)
        return EvaluatedModel(model.name, family, model.sampling, self.latents(model, model.name), latent_space=space)

    @cached_property
    def job(self) -> Job:
        """The models to measure."""
        models = [Task(self.evaluated(model), self.rounds, self.sources) for model in self.models]
        other = replace(
            models[0].model,
            name=OTHER_SEED,
            latents=self.latents(self.models[0], OTHER_SEED, reference=OTHER_SEED, of=REFERENCE_PROMPTS),
            stream=Stream.OTHER_EVALUATION_NOISE,
        )
        references = [reference_task(other, self.rounds[0], self.sources)]
        diversity = diversity_tasks(self.settings, models, self.sources, self._latents_of_several_seeds)
        reference = ReferenceTask.of(self.settings, self.sources, self.host.directory.hashes.of)
        engine = Engine(self.host, self.settings, [*models, *references, *diversity.values()], reference)
        return Job(engine, self.rounds, models, references, diversity)

    def _latents_of_several_seeds(self, name: str) -> StageDir:
        """Return the directory of the further latents of a pipeline for the diversity of its images."""
        model = next(each for each in self.models if each.name == name)
        number = {"prompts of several seeds": self.settings.diversity_prompts, "seeds": self.settings.diversity_seeds}
        return self.latents(model, several_seeds(name), **number)

    @cached_property
    def groups(self) -> Groups:
        """The groups of the prompts."""
        return groups_of_job(self.prompts, self.job)

    @cached_property
    def figures(self) -> StageDir:
        """The directory of the figures and of the images of the report."""

        def inputs() -> dict[str, Any]:
            named = {source.name: source.inputs() for source in self.sources}
            chosen = self.settings.model_dump(mode="json", include={"classifier", "grid", "resize", "resize_filter"})
            formats = [kind.model_fields["format"].default for kind in (Evaluation, Grid)]
            latents = {task.model.name: task.model.latents.key for task in self.job.engine.tasks}
            images = self.job.engine.reference
            reference = {} if images is None else {"evaluate.reference": images.images.inputs(images.hash_of)}
            return {
                **latents,
                **named,
                **chosen,
                **reference,
                "splits": key_of(
                    [{name: [rows.start, rows.stop] for name, rows in r.splits.items()} for r in self.rounds]
                ),
                "groups": key_of({kind: _members(groups) for kind, groups in self.groups.items()}),
                "metrics": list(METRICS),
                "formats": formats,
            }

        directory = self.host.stage("evaluation/figures", inputs)
        directory.is_costly = False
        return directory

    def describe(self) -> None:
        """Let the folder know every directory, on the main process."""
        for task in self.job.engine.tasks:
            task.model.latents.key  # noqa: B018 - computed here once
        self.figures.key  # noqa: B018

    def make(self) -> None:
        """Generate, extract, measure and write the figures, unless that is done."""
        done = from_main_process(
            self.host.accelerator,
            lambda: self.figures.is_done() and all(task.model.latents.is_done() for task in self.job.models),
        )
        if not done:
            self.job.engine.run()
            on_main_process(self.host.accelerator, self._measure)
        self.loader.release()
        on_main_process(self.host.accelerator, lambda: publish_metrics(self.figures, self.host.results))

    def _measure(self) -> None:
        write_figures(
            self.host,
            self.job,
            self.figures,
            classifier=self.classifier,
            groups=self.groups,
            evaluation=self._evaluation,
        )

    def _evaluation(self, results: Results) -> Evaluation:
        hash_of = self.host.directory.hashes.of
        return evaluation_record(
            self.job,
            results,
            models=self._records(results.scores),
            sampling=self.models[0].sampling,
            dtype=self.loader.load(self.models[0]).dtype,
            networks={name: each.record(hash_of, self.settings) for name, each in self.networks.items()},
            groups=self.groups,
        )

    def _records(self, scores: Mapping[str, Scores]) -> dict[str, ModelRecord]:
        """Return scores and costs of every pipeline; they are timed one after the other."""
        records: dict[str, ModelRecord] = {}
        with self.host.progress("evaluate: timing", len(self.models), unit="pipelines") as advance:
            for model in self.models:
                family = self.loader.load(model)
                speed = Speeds(family, model.sampling).of_teacher()
                if records:
                    relative = speed.sec_per_image / records[TEACHER].speed.sec_per_image
                    speed = speed.model_copy(update={"relative_time": relative})
                records[model.name] = ModelRecord(
                    scores=scores[model.name],
                    sampling=sampling_record(model.sampling, family.denoiser),
                    size=size_record(family.denoiser, family, teacher_files(model.settings)),
                    speed=speed,
                )
                advance(1, note=model.label)
        return records


def _members(groups: Mapping[str, set[ImageKey]]) -> dict[str, list[ImageKey]]:
    """Return the images of each group in order."""
    return {name: sorted(members) for name, members in groups.items()}


def _write_report(host: PipelinesHost, work: _Work) -> None:
    """Write the report, and print the table and the verdict."""
    finished = FinishedEvaluation(work.figures.path)
    evaluation = finished.evaluation()
    labels = {model.name: model.label for model in work.models}
    title = f"{', '.join(model.label for model in work.models[1:]) or 'one pipeline'} against {labels[TEACHER]}"
    inputs = ReportInputs(
        title=title,
        recipe=None,
        evaluation=evaluation,
        grid=finished.grid(),
        grid_folder=finished.grid_folder,
        pipelines={model.name: model.settings.pipeline for model in work.models},
    )
    path = write_report(host.path / REPORT_NAME, inputs)
    print_evaluation(evaluation, say=host.say, labels={TEACHER: f"teacher ({labels[TEACHER]})"})
    host.say(f"report: {path}")
