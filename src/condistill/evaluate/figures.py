"""Write the figures of an evaluation, and read them: of the students of a run, and of pipelines of any origin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from condistill.evaluate.engine import Host
from condistill.evaluate.grid import PictureGrid
from condistill.evaluate.image_values import IMAGES_NAME, Groups
from condistill.evaluate.merge_scores import images_of, merge_again
from condistill.evaluate.metrics.classifier import ImageClassifier
from condistill.evaluate.prompt_sets import PromptSet, groups_of
from condistill.evaluate.record import (
    GRID_NAME,
    METRICS_NAME,
    Evaluation,
    Grid,
    ModelRecord,
    NetworkRecord,
    ReferenceRecord,
)
from condistill.evaluate.results import Job, Measuring, Results, reference_record
from condistill.evaluate.run_tasks import OTHER_SEED, untrained
from condistill.pipelines.sampling import Sampling
from condistill.run.stage_directory import StageDir
from condistill.utils.atomic import write_text
from condistill.utils.hardware import device_name

_GRID_FOLDER = "grid"


@dataclass(frozen=True)
class FinishedEvaluation:
    """The directory of the figures of an evaluation, and of the images that its report shows."""

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


def write_figures(
    host: Host,
    job: Job,
    figures: StageDir,
    *,
    classifier: ImageClassifier | None,
    groups: Groups,
    evaluation: Callable[[Results], Evaluation],
) -> None:
    """Measure what the engine has generated, on the main process, and finish the directory of the figures.

    Args:
        evaluation: returns the record of what was measured; see `evaluation_record`.
    """
    path, rounds = figures.begin_again(), job.rounds
    if classifier is not None:
        job = replace(job, true_features=[classifier.reference(each.prompts, seed=each.seed) for each in rounds])
    with host.progress("evaluate: measuring", job.images, unit="images") as advance:
        job = replace(job, on_images=lambda count, model: advance(count, note=model))
        shown = job.engine.settings.grid
        results = Measuring(job, path).results(lambda ranking: PictureGrid(path / _GRID_FOLDER, rounds, shown, ranking))
    results.grid.write(path / GRID_NAME)
    results.values.write(path / IMAGES_NAME)
    evaluation(results).write(path / METRICS_NAME)
    merge_again(host, job, path, groups)
    files = [path / METRICS_NAME, path / GRID_NAME, path / IMAGES_NAME, *FinishedEvaluation(path).images()]
    figures.finish(files)


def evaluation_record(
    job: Job,
    results: Results,
    *,
    models: dict[str, ModelRecord],
    sampling: Sampling,
    dtype: torch.dtype,
    networks: Mapping[str, NetworkRecord],
    groups: Groups,
    quick: bool = False,
    baseline: str | None = None,
) -> Evaluation:
    """Return the record of what was measured.

    Args:
        models: scores and costs.
        sampling: of the teacher.
        dtype: of the weights.
    """
    rounds, settings = job.rounds, job.engine.settings
    (head,) = job.references[0].rounds
    referred = {task.model.name for task in job.references}
    students = [task.model.name for task in job.models if untrained(task.model.name) in referred]
    return Evaluation(
        quick=quick,
        classifier=settings.classifier,
        baseline=baseline,
        seeds=settings.seeds,
        images_per_split={split: sum(each.count(split) for each in rounds) for split in rounds[0].splits},
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        device=device_name(),
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        models=models,
        references=ReferenceRecord(
            images_per_split={split: head.count(split) for split in head.splits},
            other_seed=results.references.get(OTHER_SEED, {}),
            untrained={name: results.references.get(untrained(name), {}) for name in students},
        ),
        networks=dict(networks),
        reference_images=reference_record(job),
        comparisons=tuple(results.values.comparisons()),
        groups=results.values.groups(groups),
    )


def groups_of_job(prompts: PromptSet, job: Job) -> Groups:
    """Return the groups of the prompts of a job."""
    return groups_of(prompts, ((each.seed, each.number, each.prompt) for each in images_of(job.rounds)))


def publish_metrics(figures: StageDir, results: Path) -> None:
    """Copy `metrics.json` from the directory of the figures to the folder of the results."""
    write_text(results / METRICS_NAME, (figures.path / METRICS_NAME).read_text(encoding="utf-8"))
