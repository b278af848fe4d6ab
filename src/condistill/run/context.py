"""What the stages of a run share: recipe, run directory, accelerator and teacher. It knows no stage."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from rich.console import Console
from torch import nn

from condistill.config.recipe import TEACHER, Recipe
from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.run.directory import RunDir
from condistill.run.stage_directory import Inputs, StageDir
from condistill.run.status import StatusWriter
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher, origin_of, pipeline_inputs, read_index, teacher_inputs
from condistill.teachers.locate import is_plain
from condistill.teachers.prepare import original_files, prepare_teacher, prepared_settings
from condistill.utils.distributed import has_state, on_main_process, reset_state, start_processes
from condistill.utils.progress import FileBars, progress_bar, working
from condistill.utils.terminal import print_line
from condistill.utils.weights import hold_weights

PROTOCOLS = "evaluations"
"""The folder of evaluations by protocols in a run directory."""
_EVALUATION = "evaluation/"
T = TypeVar("T")


@dataclass(frozen=True)
class RunProtocol:
    """Another evaluation of a run than its recipe's, whose results have a folder of their own."""

    name: str
    recipe: Recipe
    """The recipe of the run without the protocol, which is kept in the run directory."""


class Run:
    """One run of a recipe. The accelerator and the teacher are made when they are first needed."""

    def __init__(self, recipe: Recipe, out: Path, *, console: Console, protocol: RunProtocol | None = None) -> None:
        """Describe a run in the run directory `out`; nothing is written before `open_directory`.

        Args:
            protocol: whose evaluation the recipe has, instead of its own.
        """
        self.recipe = recipe
        self.protocol = protocol
        self.console = console
        self.directory = RunDir(out, say=self.say, reading=FileBars(console, "checksums").reading)
        self.status = StatusWriter(out)
        self._owns_state = False
        self._results: dict[str, Any] = {}

    def __enter__(self) -> Run:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Release the run directory, and the state of accelerate, so that the next run may have another precision."""
        if self.accelerator.is_main_process:
            self.status.close(error)
            self.directory.close()
        if self._owns_state:
            reset_state()

    def claim_directory(self) -> None:
        """Lock the run directory, if it exists; nothing is written.

        Raises:
            CondistillError: it cannot be used; see `RunDir.claim`.
        """
        on_main_process(self.accelerator, self.directory.claim)

    def open_directory(self, *, update: bool = False) -> None:
        """Make the run directory, if it does not exist, and settle what changed since its results were made.

        Every stage that takes part must have described its directory before, by `stage`.

        Args:
            update: consent to make stages again whose inputs changed; their results are moved to a dated folder.

        Raises:
            CondistillError: the directory cannot be used, or something changed without consent.
        """

        def open_and_settle() -> None:
            self.directory.settle_changes(update=update)
            self.directory.create(self.protocol.recipe if self.protocol else self.recipe)
            self.status.open()

        on_main_process(self.accelerator, open_and_settle)

    @cached_property
    def teacher_inputs(self) -> dict[str, Any]:
        """Everything that the teacher's outputs depend on, by name."""
        return teacher_inputs(self.recipe.teacher, self.accelerator.device, hash_of=self.directory.hashes.of)

    @cached_property
    def teacher(self) -> TeacherSettings:
        """The teacher as stages load and copy it: that of the recipe, or the directory that was made of it."""
        if is_plain(self.recipe.teacher):
            return self.recipe.teacher
        return prepared_settings(self.recipe.teacher, self.path / TEACHER)

    @property
    def _teacher_directory(self) -> StageDir:
        """The directory of the pipeline that is made of a file, LoRAs and replaced parts."""
        return self.stage(TEACHER, lambda: pipeline_inputs(self.teacher_inputs))

    def describe_teacher(self) -> None:
        """Name the directory of the teacher, if one is made. Called on the main process, before `open_directory`."""
        if not is_plain(self.recipe.teacher):
            self._teacher_directory  # noqa: B018 - the run directory knows it from now on

    def prepare_teacher(self) -> None:
        """Make an ordinary pipeline directory of the teacher, if it is not one, and not made yet.

        Every process calls this, before any loads the teacher.

        Raises:
            CondistillError: a part of the teacher cannot be read, or does not fit the others.
        """
        if is_plain(self.recipe.teacher):
            return

        def make() -> None:
            directory = self._teacher_directory
            if directory.is_done():
                return
            path = directory.begin()
            with self.directory.hashes.linking(original_files(self.recipe.teacher).values(), path):
                prepare_teacher(self.recipe.teacher, path, say=self.say)
            self.say(f"teacher: computing checksums of {path}")
            directory.finish()
            self.say(f"teacher: made {path}")

        on_main_process(self.accelerator, make)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def results(self) -> Path:
        """Where `metrics.json` and the report are: the run directory, or the folder of the protocol."""
        return self.path / PROTOCOLS / self.protocol.name if self.protocol else self.path

    def say(self, text: str, *, style: str = "", everywhere: bool = False) -> None:
        """Print one line on the main process.

        Args:
            everywhere: print it on the process that calls.
        """
        if everywhere or self.accelerator.is_main_process:
            print_line(self.console, text, style=style)

    @contextmanager
    def progress(self, label: str, total: int, *, unit: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
        """Show the progress of some work on the main process, and keep it in `status.json`; see `progress_bar`.

        Args:
            quiet: show and keep nothing.
        """
        quiet = quiet or not self.accelerator.is_main_process
        with progress_bar(
            self.console,
            label,
            total,
            unit=unit,
            quiet=quiet,
            on_change=lambda meter, note: None if quiet else self.status.advance(label, meter, note),
        ) as advance:
            yield advance

    @contextmanager
    def working(self, text: str, *, after_sec: float = 0.0) -> Iterator[None]:
        """Show on the main process that work of unknown length is still running; see `utils.progress.working`."""
        is_main = self.accelerator.is_main_process
        if is_main:
            self.status.begin(text)
        with working(self.console, text, quiet=not is_main, after_sec=after_sec):
            yield

    def stage(self, name: str, inputs: Callable[[], Inputs]) -> StageDir:
        """Return the directory of a stage.

        Args:
            name: its path in the run directory, such as `cache` or `distill/small`. With a protocol, a path that begins
                with `evaluation` is in the folder of the protocol instead.
            inputs: returns the settings and inputs that the result depends on, by name, and nothing else. Called on
                the main process, the first time only.
        """
        if self.protocol and name.startswith(_EVALUATION):
            name = f"{PROTOCOLS}/{self.protocol.name}/{name.removeprefix(_EVALUATION)}"
        return self.directory.stage(name, inputs)

    def fill(self, directory: StageDir, work: Callable[[Path], object]) -> None:
        """Fill the directory of a stage on the main process, while the others wait.

        Args:
            work: called with the path of the directory, which is finished afterwards.
        """

        def begin_and_finish() -> None:
            work(directory.begin())
            directory.finish()

        with self.working(f"{directory.name}: building {directory.path}", after_sec=2.0):
            on_main_process(self.accelerator, begin_and_finish)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return the result of `make`, which is called the first time only."""
        if name not in self._results:
            self._results[name] = make()
        return cast("T", self._results[name])

    @cached_property
    def accelerator(self) -> Any:
        """The `accelerate.Accelerator` that all variants share.

        Raises:
            CondistillError: the variants differ in precision or tracker, or the machine or the launcher does not
                support them.
        """
        from accelerate import Accelerator

        settings = [self.recipe.variant(name)[1] for name in self.recipe.variants]
        if len({(s.mixed_precision, s.logging.tracker) for s in settings}) > 1:
            raise CondistillError("all variants of a run share distill.mixed_precision and distill.logging.tracker")
        tracker, precision = settings[0].logging.tracker, settings[0].mixed_precision
        if tracker != "none" and importlib.util.find_spec(tracker) is None:
            raise CondistillError(
                f"distill.logging.tracker is {tracker!r}, which is not installed: pip install {tracker}"
            )
        start_processes()
        self._owns_state = not has_state()
        try:
            return Accelerator(
                mixed_precision=precision,
                log_with=None if tracker == "none" else tracker,
                project_dir=str(self.path / "tracker"),
            )
        except ValueError as error:
            raise CondistillError(f"distill.mixed_precision {precision!r} cannot be used here: {error}") from error

    @cached_property
    def family(self) -> Family:
        """The teacher, on the accelerator's device."""
        with self.working(f"teacher: loading {self.teacher.pipeline}"):
            family = load_teacher(self.teacher, device=self.accelerator.device)
        family.origin = origin_of(self.recipe.teacher, read_index(self.recipe.teacher)[0])
        if family.device.type == "cpu":
            for part in family.pipeline.components.values():
                if isinstance(part, nn.Module):
                    hold_weights(part, channels_last=part is family.denoiser)
        return family
