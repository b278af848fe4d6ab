"""The stages in order: prompts, cache, distill, evaluate, report. Each is made only if it is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from condistill.cache import stage as cache
from condistill.config.recipe import Recipe
from condistill.distill import stage as distill
from condistill.errors import CondistillError, nearest
from condistill.evaluate import stage as evaluate
from condistill.prompts import stage as prompts
from condistill.report import stage as report
from condistill.run.context import Run, RunProtocol
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.distributed import decide, on_main_process
from condistill.utils.quiet import quiet_libraries
from condistill.utils.registry import load_plugins
from condistill.workflow.preflight import (
    check_first_prompts,
    check_inputs,
    check_places,
    check_processes,
    check_prompts,
    check_space,
    preflight,
    recipe_warnings,
)


class Stage(Protocol):
    """A step of a run: a module with a name and four functions."""

    NAME: str

    def key(self, run: Run, /) -> str:
        """Return the hash of the settings and inputs that change the result of the stage."""

    def is_done(self, run: Run, /) -> bool:
        """Return whether the result exists. Called on the main process."""

    def make(self, run: Run, /) -> None:
        """Make the result, or what is missing of it. Called on every process."""

    def open(self, run: Run, /) -> Any:
        """Return the result for later stages."""


STAGES: list[Stage] = [prompts, cache, distill, evaluate, report]
"""In the order in which they run."""


def register_stage(stage: Stage, *, after: str) -> None:
    """Add a stage to every run.

    Args:
        stage: a module or an object; see `Stage`.
        after: the name of the stage that it follows.

    Raises:
        CondistillError: the name belongs to another stage, or there is no stage `after`.
    """
    if any(known.NAME == stage.NAME for known in STAGES):
        raise CondistillError(f"the stage {stage.NAME!r} is registered already; choose another name")
    STAGES.insert(stage_names().index(check_stage(after)) + 1, stage)


def stage_names() -> list[str]:
    """Return the names of all stages, in their order."""
    return [stage.NAME for stage in STAGES]


def check_stage(name: str) -> str:
    """Return the name of a stage, if there is one.

    Raises:
        CondistillError: there is none; the message names the nearest.
    """
    if name not in stage_names():
        raise CondistillError(f"there is no stage {name!r}{nearest(name, stage_names())}")
    return name


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    until: str = "report",
    update: bool = False,
    console: Console | None = None,
    begin: Callable[[Run], None] | None = None,
    before_training: Callable[[Run], object] | None = None,
    protocol: RunProtocol | None = None,
    finish: Callable[[Run], object] | None = None,
) -> Path:
    """Run the stages of a recipe, as `condistill.compress` does, and return the run directory.

    Args:
        begin: called when the directory is locked, before the files of the recipe are read; it may write them.
        before_training: called on the main process before the stages write, if a student is still to be trained.
        protocol: whose evaluation the recipe has, instead of its own.
        finish: called on every process after the last stage, while the directory is locked.

    Raises:
        CondistillError: says what was given, what is allowed and what to do.
    """
    with quiet_libraries():
        load_plugins()
        last = stage_names().index(check_stage(until))
        check_places(recipe, out)
        if begin is None:
            check_inputs(recipe)
        with Run(recipe, out, console=console or Console(stderr=True), protocol=protocol) as run:
            run.claim_directory()
            if begin is not None:
                begin(run)
                check_inputs(recipe)
            _run_stages(run, STAGES[: last + 1], update=update, before_training=before_training or (lambda _: None))
            if finish is not None:
                finish(run)
        return run.path


def compress(
    recipe: Recipe,
    out: str | Path,
    *,
    until: str = "report",
    update: bool = False,
    console: Console | None = None,
    before_training: Callable[[Run], object] | None = None,
) -> Path:
    """Turn a teacher and prompts into students, as the recipe says; see `condistill.compress`.

    Args:
        before_training: called on the main process before anything is written, if a student is still to be trained.
    """
    return run_recipe(recipe, Path(out), until=until, update=update, console=console, before_training=before_training)


def _run_stages(run: Run, stages: Sequence[Stage], *, update: bool, before_training: Callable[[Run], object]) -> None:
    """Make what is missing of every stage, in order."""
    if not decide(run.accelerator, lambda: distill.is_done(run)):
        check_processes(run.recipe, run.accelerator.num_processes)
        with run.working("checking the recipe against the teacher's configs", after_sec=2.0):
            skeleton = teacher_skeleton(run.recipe.teacher)
            students = preflight(run.recipe, skeleton)  # before anything is written
            check_first_prompts(run.recipe.prompts.every_file, run.recipe.prompts.column, skeleton.family)
        on_main_process(run.accelerator, lambda: check_space(run, students, skeleton))
        on_main_process(run.accelerator, lambda: before_training(run))
    on_main_process(run.accelerator, lambda: _name_directories(run, stages))
    run.open_directory(update=update)
    run.say(f"condistill {run.path}", style="bold")
    for line in recipe_warnings(run.recipe):
        run.say(f"warning: {line}", style="yellow")
    for stage in stages:
        run.status.enter(stage.NAME)
        if not decide(run.accelerator, lambda stage=stage: stage.is_done(run)):  # type: ignore[misc]
            stage.make(run)
        stage.open(run)
        if stage is prompts and stage is not stages[-1]:
            if not decide(run.accelerator, lambda: all(other.is_done(run) for other in stages if other is not report)):
                run.prepare_teacher()
            with run.working("prompts: checking that the teacher can read them", after_sec=2.0):
                check_prompts(run)


def _name_directories(run: Run, stages: Sequence[Stage]) -> None:
    """Let the run directory know the directory of the teacher and of every stage."""
    if any(stage is not prompts for stage in stages):
        run.describe_teacher()
    for stage in stages:
        stage.key(run)
