"""Ablations: one recipe in several cases, each over seeds, and one table with the spread of every figure.

A sweep is ordinary runs. Cases that differ in `student` and `distill` only are variants of one recipe, and share its
prompts, its cache and the evaluation of its teacher; any other difference, and every seed, has a run of its own.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from condistill.errors import CondistillError
from condistill.utils.atomic import write_text
from condistill.workflow.sweep_cases import Sweep, plan
from condistill.workflow.sweep_table import RESULT_NAME, Done, measured, table, write_sweep


def run_sweep(sweep: Sweep, out: Path, *, update: bool = False, console: Console | None = None) -> None:
    """Do every run of a sweep that is not done yet; `sweep.json`, `sweep.md` and `sweep.svg` are in `out` after each.

    Raises:
        CondistillError: says what was given, what is allowed and what to do.
    """
    console = console or Console(stderr=True)
    runs = plan(sweep)
    from accelerate import PartialState

    from condistill.workflow.compress import compress
    from condistill.workflow.preflight import check_inputs

    for run in runs:
        check_inputs(run.recipe)
    process = PartialState()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if process.is_main_process:
        _claim(out, sweep)
    process.wait_for_everyone()
    done: list[Done] = []
    for number, run in enumerate(runs, start=1):
        if process.is_main_process:
            say(f"\nsweep: run {number} of {len(runs)}: {', '.join(case.label for case in run.cases)}; seed {run.seed}")
        path = compress(run.recipe, out / run.folder, update=update, console=console)
        if process.is_main_process:
            done.append((run, json.loads((path / "metrics.json").read_text(encoding="utf-8"))))
            write_sweep(sweep, out, done, len(runs))
    if process.is_main_process:
        head, *lines = table(measured(done))
        shown = Table(*map(escape, head))
        for line in lines:
            shown.add_row(*map(escape, line))
        console.print(shown)
        say("\n".join(f"{name}: {out / name}" for name in ("sweep.md", "sweep.svg", RESULT_NAME)))


def _claim(out: Path, sweep: Sweep) -> None:
    """Make the directory of a sweep, unless it is there; refuse one that holds something else."""
    if not (out / RESULT_NAME).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise CondistillError(
                f"{out} is not empty and holds no sweep of condistill; choose another --out, so that nothing is lost"
            )
        write_text(out / RESULT_NAME, json.dumps({"command": sweep.command(out)}) + "\n")
