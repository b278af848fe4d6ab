"""Sweeps: several cases of a recipe over several seeds, and one table with mean and standard deviation.

A sweep consists of ordinary runs. Cases that differ only in `student` and `distill` are variants of one recipe: they
share the prompts, the cache and the evaluation of the teacher. Any other difference needs a run of its own, and so does
each seed.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from condistill.errors import CondistillError
from condistill.evaluate.record import Evaluation
from condistill.utils.atomic import write_text
from condistill.utils.distributed import on_main_process, start_processes
from condistill.utils.terminal import cell, print_line
from condistill.workflow.sweep_cases import Sweep, plan_runs
from condistill.workflow.sweep_table import RESULT_NAME, Done, measured, table, write_sweep


def run_sweep(sweep: Sweep, out: Path, *, update: bool = False, console: Console | None = None) -> None:
    """Run a sweep, and write `sweep.json`, `sweep.md` and `sweep.svg` to `out` after each run.

    Finished runs are not repeated.

    Args:
        update: where inputs changed since results were made, move those results to a dated folder, and make them again.

    Raises:
        CondistillError: a case is invalid, `out` is not the directory of a sweep, or a run fails.
    """
    console = console or Console(stderr=True)
    runs = plan_runs(sweep)
    from condistill.workflow.compress import compress
    from condistill.workflow.preflight import check_inputs

    for run in runs:
        check_inputs(run.recipe)
    process = start_processes()
    say = partial(print_line, console)
    on_main_process(process, lambda: _open_directory(out, sweep))
    done: list[Done] = []

    def write() -> None:
        done.append((run, Evaluation.load(path)))
        write_sweep(sweep, out, done, len(runs))

    for number, run in enumerate(runs, start=1):
        if process.is_main_process:
            say(f"\nsweep: run {number} of {len(runs)}: {', '.join(case.label for case in run.cases)}; seed {run.seed}")
        path = compress(run.recipe, out / run.folder, update=update, console=console)
        on_main_process(process, write)
    if process.is_main_process:
        headings, *rows = table(measured(done))
        summary = Table(*map(cell, headings))
        for row in rows:
            summary.add_row(*map(cell, row))
        console.print(summary)
        say("\n".join(f"{name}: {out / name}" for name in ("sweep.md", "sweep.svg", RESULT_NAME)))


def _open_directory(out: Path, sweep: Sweep) -> None:
    """Create the directory of a sweep if it does not exist, and refuse a directory with other content."""
    if not (out / RESULT_NAME).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CondistillError(
                f"{out} is not empty and is not the directory of a sweep; choose another --out, so that no file is lost"
            )
        write_text(out / RESULT_NAME, json.dumps({"command": sweep.command(out)}) + "\n")
