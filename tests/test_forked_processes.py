"""Processes that tests fork, instead of starting an interpreter, behave as those of an interpreter."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from forked import quick_python

pytestmark = pytest.mark.slow  # the process that forks is started
ENDS = {
    "a result": "import os, sys; print(sys.argv[1:], sys.stdin.read(), os.environ['A_VALUE'], os.getcwd())",
    "a code": "import sys; sys.exit(7)",
    "a text": "import sys; sys.exit('reason')",
    "a signal": "import os; os.kill(os.getpid(), 9)",
    "ctrl-c": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_a_forked_process_has_the_output_and_the_end_of_an_interpreter(code: str, tmp_path: object) -> None:
    ends = [
        subprocess.run(
            [python, "-c", code, "x"],
            input="typed",
            cwd=str(tmp_path),
            env={"A_VALUE": "of the caller"},
            capture_output=True,
            text=True,
            check=False,
        )
        for python in (quick_python(), sys.executable)
    ]
    assert ends[0].returncode == ends[1].returncode
    assert ends[0].stdout == ends[1].stdout
    assert ends[0].stderr.splitlines()[-1:] == ends[1].stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_forked_process(number: signal.Signals) -> None:
    code = "import time; print('started', flush=True); time.sleep(100)"
    process = subprocess.Popen(
        [quick_python(), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    assert process.wait(20) == -number
    assert process.stdout.read() == ""  # nobody has it open any more
