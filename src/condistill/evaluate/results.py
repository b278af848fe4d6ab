"""From files to figures: scores of every model and of its references, comparisons of models, and chosen images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from condistill.config.recipe import TEACHER
from condistill.evaluate.engine import Engine, Task
from condistill.evaluate.grid import PictureGrid, Ranking
from condistill.evaluate.image_values import ImageValues
from condistill.evaluate.measure import Measured, Measurement, Scores, Subject
from condistill.evaluate.metrics.metric import ALL_CORRECT, IMAGES, METRICS, Metric, ReferenceSet, of_teacher
from condistill.evaluate.record import Grid, ReferenceImagesRecord
from condistill.evaluate.reference_sets import TeacherSets, compared_features
from condistill.evaluate.rounds import ALL, Round
from condistill.utils.atomic import partial_path, remove

References = Mapping[str, Mapping[str, ReferenceSet]]
"""By split and feature."""


@dataclass(frozen=True)
class Job:
    """Which models are measured, and against what."""

    engine: Engine
    rounds: Sequence[Round]
    models: Sequence[Task]
    """In the order of the results; the model with the name `teacher` is the teacher."""
    references: Sequence[Task] = ()
    """Of models that are measured on the first prompts of the first round only."""
    diversity: Mapping[str, Task] = field(default_factory=dict)
    """By model, the task of its images of the same prompts from several seeds."""
    true_features: Sequence[NDArray[np.float64]] = ()
    """See `Measurement`."""
    on_images: Callable[[int, str], object] = lambda _count, _model: None

    @property
    def images(self) -> int:
        """Images that `on_images` is called with in all."""
        of_seeds = any(kind.over_seeds for kind in METRICS.values())
        tasks = [*self.models, *self.references, *(self.diversity.values() if of_seeds else ())]
        return sum(task.images for task in tasks)


@dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    models: dict[str, Measured]
    references: dict[str, Scores]
    """By reference, its distances to the teacher."""
    values: ImageValues
    grid: Grid

    @property
    def scores(self) -> dict[str, Scores]:
        """The scores by model."""
        return {name: measured.scores for name, measured in self.models.items()}


def distances() -> list[type[Metric]]:
    """Return the metrics that compare a student with its teacher and need no more."""
    return [kind for kind in METRICS.values() if kind.is_distance_to_teacher()]


def reference_record(job: Job) -> ReferenceImagesRecord | None:
    """Return what sets of images are compared with; None where no network reads them."""
    if job.engine.reference is not None:
        return job.engine.reference.record()
    compared = compared_features()
    for task in job.models:
        if task.model.name == TEACHER and any(name in compared for source in task.sources for name in source.features):
            return ReferenceImagesRecord(source=TEACHER, images=task.images, sha256="")
    return None


class Measuring:
    """Measures the models of a job, one at a time, on the main process."""

    def __init__(self, job: Job, directory: Path) -> None:
        """Describe the work.

        Args:
            directory: of the results; arrays are mapped from a temporary folder in it.
        """
        self.job, self.engine = job, job.engine
        self._directory = directory
        self._mapped = partial_path(directory / "features")
        self._first = job.rounds[0]
        self._sets: TeacherSets | None = None

    def results(self, grid: Callable[[Ranking | None], PictureGrid]) -> Results:
        """Return everything that was measured, after the images of the grid were written.

        Args:
            grid: returns the grid of a ranking of the prompts.
        """
        remove(self._mapped)
        try:
            with ExitStack() as stack:
                teacher = self._open_teacher(stack)
                models = {task.model.name: self._measure(task, teacher) for task in self.job.models}
                references = {
                    task.model.name: self._measure_reference(task, teacher)
                    for task in self.job.references
                    if teacher is not None and task.model.name not in self.engine.failed
                }
            pictures = grid(rank(models, self.job.rounds))
            self._show(pictures)
        finally:
            remove(self._mapped)
        values = ImageValues(self.job.rounds, {name: measured.values for name, measured in models.items()})
        return Results(models, references, values, pictures.record())

    @cached_property
    def _measurement(self) -> Measurement:
        seed = self._first.seed
        job = self.job
        return Measurement(job.rounds, true_features=job.true_features, seed=seed, on_images=job.on_images)

    def _open_teacher(self, stack: ExitStack) -> Subject | None:
        task = next((task for task in self.job.models if task.model.name == TEACHER), None)
        if task is None:
            return None
        needs_images = any(of_teacher(IMAGES) in kind.needs for kind in METRICS.values())
        folder = self._mapped / "reference"  # apart from the folder of the teacher as one of the models
        return stack.enter_context(self.engine.subject(task, folder, with_images=needs_images))

    def _measure(self, task: Task, teacher: Subject | None) -> Measured:
        """Return the results of one model, those over several seeds of a prompt included."""
        is_teacher = task.model.name == TEACHER
        reference = self._given if self.engine.reference else {} if is_teacher else self._of_teacher(teacher)
        if is_teacher and teacher is not None and not _needs_images():
            measured = self._measurement.measure(teacher, reference=reference)
        else:
            with self._opened(task) as subject:
                measured = self._measurement.measure(subject, None if is_teacher else teacher, reference=reference)
        kinds = [kind for kind in METRICS.values() if kind.over_seeds]
        if kinds and (extra := self.job.diversity.get(task.model.name)) is not None:
            measurement = Measurement(extra.rounds, seed=self._first.seed, on_images=self.job.on_images)
            with self._opened(extra) as subject:
                found = measurement.measure(subject, kinds=kinds)
            measured.scores[ALL].update(found.scores[ALL])
            measured.values.update(found.values)
        return measured

    def _opened(self, task: Task) -> AbstractContextManager[Subject]:
        return self.engine.subject(task, self._mapped, with_images=_needs_images())

    @cached_property
    def _given(self) -> References:
        """The sets of the reference images, which are the same for every split."""
        assert self.engine.reference is not None
        sets = self.engine.reference.sets(self.engine.reference_directories(), self._mapped)
        return dict.fromkeys([*self._first.parts, ALL], sets)

    def _of_teacher(self, teacher: Subject | None) -> References:
        if teacher is None or not teacher.features:
            return {}
        if self._sets is None:
            self._sets = TeacherSets(self._measurement.order, self.job.rounds, teacher.features)
        return self._sets

    def _measure_reference(self, task: Task, teacher: Subject) -> Scores:
        """Return the distances of a reference to the teacher."""
        (head,) = task.rounds
        rows_of = {self._first.number(row): row for row in range(len(self._first.prompts))}
        rows = [rows_of[head.number(row)] for row in range(len(head.prompts))]
        places = [self._measurement.order.place(0, row) for row in rows]

        def latents(_number: int, wanted: range) -> NDArray[np.float32]:
            return np.concatenate([teacher.latents(0, range(row, row + 1)) for row in (rows[each] for each in wanted)])

        picked = {name: array[places] for name, array in teacher.features.items()}
        of_head = replace(teacher, latents=latents, features=picked, images=None)
        measurement = Measurement([head], seed=head.seed, on_images=self.job.on_images)
        with self.engine.subject(task, self._mapped) as subject:
            return measurement.measure(subject, of_head, kinds=distances()).scores

    def _show(self, grid: PictureGrid) -> None:
        """Decode the images of the grid."""
        places = grid.places()
        for task in self.job.models if places else ():
            with self.engine.decoder(task) as images:
                for place in places:
                    image = images(place.round_number, range(place.row, place.row + 1))[0]
                    flag = self.engine.feature(task, ALL_CORRECT, place.round_number, place.row)
                    grid.add(task.model.name, place, image, correct=None if flag is None else bool(flag))


def _needs_images() -> bool:
    """Return whether some metric reads the images themselves, so that they must be decoded again."""
    return any({IMAGES, of_teacher(IMAGES)}.intersection(kind.needs) for kind in METRICS.values())


def rank(models: Mapping[str, Measured], rounds: Sequence[Round]) -> Ranking | None:
    """Return the ranking of the prompts by the first metric that compares every image with the teacher's."""
    students = [name for name in models if name != TEACHER]
    for kind in distances():
        values = {name: models[name].values[kind.name] for name in students if kind.name in models[name].values}
        if values:
            return Ranking.of(kind.name, values, rounds, sign=-kind.oriented(1.0))
    return None
