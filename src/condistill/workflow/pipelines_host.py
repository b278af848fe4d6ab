"""The folder and the processes of an evaluation of finished pipelines, which has no recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from condistill.config.yaml_tree import write_yaml
from condistill.run.directory import RunDir
from condistill.run.stage_directory import Inputs, StageDir
from condistill.utils.atomic import write_text
from condistill.utils.distributed import has_state, on_main_process, reset_state, start_processes
from condistill.utils.progress import FileBars, progress_bar
from condistill.utils.terminal import print_line

SETTINGS_NAME = "evaluation.yaml"
"""The resolved settings of the evaluation."""


class PipelinesHost:
    """What the engine uses of a run: lines for the user, progress, and a locked folder with one directory per part."""

    def __init__(self, out: Path, *, console: Console) -> None:
        """Describe the folder `out`; nothing is written before `open_directory`."""
        self._console = console
        self.directory = RunDir(out, say=self.say, reading=FileBars(console, "checksums").reading)
        self._owns_state = False

    def __enter__(self) -> PipelinesHost:
        return self

    def __exit__(self, *_: object) -> None:
        """Release the folder, and the state of accelerate."""
        if self.accelerator.is_main_process:
            self.directory.close()
        if self._owns_state:
            reset_state()

    @cached_property
    def accelerator(self) -> Any:
        """The `accelerate.Accelerator`.

        Raises:
            CondistillError: the launcher asks for what is not supported.
        """
        from accelerate import Accelerator

        start_processes()
        self._owns_state = not has_state()
        return Accelerator()

    @property
    def path(self) -> Path:
        """The folder of the results."""
        return self.directory.path

    @property
    def results(self) -> Path:
        """The folder of `metrics.json` and the report."""
        return self.path

    def say(self, text: str, *, style: str = "", everywhere: bool = False) -> None:
        """Print one line on the main process; see `Run.say`."""
        if everywhere or self.accelerator.is_main_process:
            print_line(self._console, text, style=style)

    @contextmanager
    def progress(self, label: str, total: int, *, unit: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
        """Show the progress of some work on the main process; see `progress_bar`."""
        quiet = quiet or not self.accelerator.is_main_process
        with progress_bar(self._console, label, total, unit=unit, quiet=quiet) as advance:
            yield advance

    def stage(self, name: str, inputs: Callable[[], Inputs]) -> StageDir:
        """Return a directory; see `Run.stage`."""
        return self.directory.stage(name, inputs)

    def claim_directory(self) -> None:
        """Lock the folder, if it exists; nothing is written.

        Raises:
            CondistillError: it holds other files, or another command uses it.
        """
        on_main_process(self.accelerator, self.directory.claim)

    def open_directory(self, settings: dict[str, Any], *, update: bool) -> None:
        """Make the folder, if it does not exist, and settle what changed since its results were made.

        Args:
            settings: the pipelines and the section `evaluate`, which are kept in the folder.
            update: consent to make results again whose inputs changed.

        Raises:
            CondistillError: something changed without consent.
        """

        def open_and_settle() -> None:
            self.directory.settle_changes(update=update)
            self.directory.create(None)
            write_text(self.path / SETTINGS_NAME, write_yaml(settings))

        on_main_process(self.accelerator, open_and_settle)
