"""The engine of an evaluation: latents, then features, both in files of one batch each, from which all is measured.

Generation and extraction are split over the processes of a run by batches, and resume after the last finished one. All
metrics are computed on the main process from the files, so results do not depend on processes, restarts or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.config.evaluate import EvaluateSettings
from condistill.errors import CondistillError
from condistill.evaluate.batches import LATENTS_NAME, BatchFiles, begin_batches, finish_batches
from condistill.evaluate.features import FeatureSource, Loaded, Reading, extract_features, feature_inputs, resizer
from condistill.evaluate.generate import Watch, generate_latents
from condistill.evaluate.mapped import Order, map_features
from condistill.evaluate.measure import Subject
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.reference_features import REFERENCE_IMAGES, ReferenceTask
from condistill.evaluate.rounds import Round
from condistill.run.stage_directory import Inputs, StageDir
from condistill.utils.atomic import remove
from condistill.utils.distributed import from_main_process, on_every_process, on_main_process

FEATURES = "evaluation/features"
"""The folder of features in a run directory: a directory for every model and network."""


class Host(Protocol):
    """What the engine uses of a run."""

    @property
    def accelerator(self) -> Any:
        """The `accelerate.Accelerator`."""

    def say(self, text: str, *, style: str = "", everywhere: bool = False) -> None:
        """Print one line on the main process."""

    def progress(
        self, label: str, total: int, *, unit: str, quiet: bool = False
    ) -> AbstractContextManager[Callable[..., None]]:
        """Show the progress of some work; see `Run.progress`."""

    def stage(self, name: str, inputs: Callable[[], Inputs]) -> StageDir:
        """Return a directory; see `Run.stage`."""


@dataclass(frozen=True)
class Task:
    """A model, and the rounds whose images it generates."""

    model: EvaluatedModel
    rounds: Sequence[Round]
    sources: Sequence[FeatureSource] = ()
    """The networks that read its images."""
    is_optional: bool = False
    """Whether a model that cannot generate is reported and left out; only the main process works on it."""

    @property
    def images(self) -> int:
        """Images of all rounds."""
        return sum(len(each.prompts) for each in self.rounds)


@dataclass
class Engine:
    """Generates latents and extracts features of models, and opens them for measuring."""

    host: Host
    settings: EvaluateSettings
    tasks: Sequence[Task]
    reference: ReferenceTask | None = None
    """The images that the sets of generated images are compared with; None: the teacher's."""
    failed: set[str] = field(default_factory=set)
    """Names of optional models that could not generate."""

    def directories(self, task: Task) -> dict[str, StageDir]:
        """Return where the features of a model are kept, by the name of the network."""
        return {source.name: self._features(task, source) for source in task.sources}

    def _features(self, task: Task, source: FeatureSource) -> StageDir:
        latents, settings = task.model.latents, self.settings
        directory = self.host.stage(
            f"{FEATURES}/{task.model.name}/{source.name}", lambda: feature_inputs(latents, source, settings)
        )
        directory.is_costly = False
        return directory

    def run(self) -> None:
        """Generate the latents and extract the features that are missing. Every process calls this."""
        pending = from_main_process(
            self.host.accelerator, lambda: [n for n, task in enumerate(self.tasks) if not task.model.latents.is_done()]
        )
        if pending:
            self._generate([self.tasks[number] for number in pending])
        tasks = [task for task in self.tasks if task.model.name not in self.failed]
        missing = from_main_process(self.host.accelerator, lambda: [self._missing(task) for task in tasks])
        jobs = [(task, names) for task, names in zip(tasks, missing, strict=True) if names]
        if jobs:
            self._extract(jobs)
        self._read_reference()

    def reference_directories(self) -> dict[str, StageDir]:
        """Return where the features of the reference images are kept, by the name of the network."""
        if self.reference is None:
            return {}
        found = {}
        for source in self.reference.sources:
            inputs = partial(self.reference.inputs, source)
            found[source.name] = self.host.stage(f"{FEATURES}/{REFERENCE_IMAGES}/{source.name}", inputs)
            found[source.name].is_costly = False
        return found

    def _read_reference(self) -> None:
        """Extract the features of the reference images that are missing."""
        accelerator, reference, directories = self.host.accelerator, self.reference, self.reference_directories()
        if reference is None or not directories:
            return
        names: list[str] = from_main_process(
            accelerator, lambda: [name for name, directory in directories.items() if not directory.is_done()]
        )
        if not names:
            return
        loaded = Loaded()
        total = -(-len(reference.images) // self._part[1]) * len(names)
        with self._progress("evaluate: reading reference images", total) as watch:
            work = partial(
                reference.extract,
                directories,
                names,
                reading=Reading(loaded, lambda images: images, self.settings.batch_size),
                device=accelerator.device,
                watch=watch,
            )
            self._fill_shared([directories[name] for name in names], [reference.round_], work)
        loaded.release()

    @cached_property
    def _part(self) -> tuple[int, int]:
        return self.host.accelerator.process_index, self.host.accelerator.num_processes

    def _missing(self, task: Task) -> list[str]:
        """Return the networks that have not read all images of a model."""
        return [name for name, directory in self.directories(task).items() if not directory.is_done()]

    def _generate(self, tasks: Sequence[Task]) -> None:
        batch_size = self.settings.batch_size
        with self._progress("evaluate", sum(map(self._share, tasks))) as watch:
            for task in tasks:
                work = partial(generate_latents, task.model, task.rounds, batch_size=batch_size, watch=watch)
                self._fill(task, [task.model.latents], work)

    def _extract(self, jobs: Sequence[tuple[Task, list[str]]]) -> None:
        loaded, resize = Loaded(), resizer(self.settings)
        total = sum(self._share(task) * len(names) for task, names in jobs)
        with self._progress("evaluate: decoding and reading", total) as watch:
            for task, names in jobs:
                directories = {name: each for name, each in self.directories(task).items() if name in names}
                work = partial(
                    extract_features,
                    task.model,
                    task.rounds,
                    directories,
                    [source for source in task.sources if source.name in names],
                    reading=Reading(loaded, resize, self.settings.batch_size),
                    watch=watch,
                )
                self._fill(task, list(directories.values()), work)
        loaded.release()

    def _fill(self, task: Task, directories: Sequence[StageDir], work: Callable[..., None]) -> None:
        """Fill directories of a model: all processes, or for an optional model the main process alone.

        Args:
            work: called with `part`, which files are those of this process.
        """
        if not task.is_optional:
            self._fill_shared(directories, task.rounds, work)
            return

        def attempt() -> bool:
            try:
                work(part=(0, 1))
            except CondistillError as error:
                self.host.say(f"warning: no reference {task.model.name}: {error}", style="yellow")
                return False
            return True

        on_main_process(self.host.accelerator, lambda: self._begin(directories))
        if from_main_process(self.host.accelerator, attempt):
            on_main_process(self.host.accelerator, lambda: self._finish(directories, task.rounds))
        else:
            self.failed.add(task.model.name)

    def _fill_shared(self, directories: Sequence[StageDir], rounds: Sequence[Round], work: Callable[..., None]) -> None:
        """Fill directories with all processes."""
        on_main_process(self.host.accelerator, lambda: self._begin(directories))
        on_every_process(self.host.accelerator, partial(work, part=self._part))
        on_main_process(self.host.accelerator, lambda: self._finish(directories, rounds))

    def _begin(self, directories: Sequence[StageDir]) -> None:
        for directory in directories:
            begin_batches(directory, self.settings.batch_size)

    def _finish(self, directories: Sequence[StageDir], rounds: Sequence[Round]) -> None:
        for directory in directories:
            finish_batches(directory, rounds)

    def _share(self, task: Task) -> int:
        """Return how many images this process generates, about."""
        return task.images if task.is_optional else -(-task.images // self._part[1])

    @contextmanager
    def _progress(self, label: str, total: int) -> Iterator[Watch]:
        with self.host.progress(label, total, unit="images") as advance:
            yield Watch(
                on_images=lambda count, model: advance(count, note=model),
                on_found=lambda count, model: advance(count, note=model, found=True),
                on_damaged=lambda path: self.host.say(f"{path} is damaged; it is made again", everywhere=True),
            )

    @contextmanager
    def subject(self, task: Task, folder: Path, *, with_images: bool = False) -> Iterator[Subject]:
        """Yield what is measured of a model, from its files.

        Args:
            folder: where arrays are mapped from, while this is open.
            with_images: whether its images are decoded too, which needs its family.
        """
        features = {name: BatchFiles.of(directory) for name, directory in self.directories(task).items()}
        mapped = map_features(folder / task.model.name, Order(task.rounds), features)
        subject = Subject(task.model.name, self._latents(task), mapped, latent_space=task.model.latent_space)
        try:
            if with_images:
                with self.decoder(task) as images:
                    yield replace(subject, images=images)
            else:
                yield subject
        finally:
            mapped.clear()
            remove(folder / task.model.name)

    @contextmanager
    def decoder(self, task: Task) -> Iterator[Callable[[int, range], NDArray[np.uint8]]]:
        """Yield a function that decodes the images of some rows of the round of a number."""
        latents = self._latents(task)
        with task.model.decoding() as family:
            yield lambda number, rows: family.decode(torch.from_numpy(latents(number, rows)))

    def feature(self, task: Task, name: str, number: int, row: int) -> Any:
        """Return one feature of one row of the round of a number; None if no network extracts it."""
        for source in task.sources:
            if name in source.features:
                files = BatchFiles.of(self._features(task, source))
                return files.read(task.rounds[number], range(row, row + 1))[name][0]
        return None

    def _latents(self, task: Task) -> Callable[[int, range], NDArray[np.float32]]:
        files = BatchFiles.of(task.model.latents)
        return lambda number, rows: files.read(task.rounds[number], rows)[LATENTS_NAME]
