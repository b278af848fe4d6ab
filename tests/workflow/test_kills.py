"""A few of the kills of `tools/kill_runs.py`, which has the commands for as many as you like."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from forked import quick_python

TOOL = Path(__file__).parents[2] / "tools" / "kill_runs.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "options"), [(2, ()), (1, ("--processes", "2")), (1, ("--changed",))], ids=["one", "two", "changed"]
)
def test_a_killed_run_ends_with_the_results_of_a_run_left_alone(kills: int, options: tuple[str, ...]) -> None:
    command = [quick_python(), str(TOOL), "--kills", str(kills), "--seed", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills, 0 runs differ" in done.stdout


@pytest.mark.slow
def test_no_process_waits_for_one_that_does_not_come_however_late_the_others_are() -> None:
    command = [quick_python(), str(TOOL), "--delays", "1", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs with delays, 0 runs differ" in done.stdout
