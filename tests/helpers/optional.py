"""Packages that `make install` puts into a folder of their own: torchao and peft.

diffusers imports both wherever it finds them, which every command and every other test would pay for. Tests that need
them start a process that finds the folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "optional"


def run_with_optional(*arguments: str) -> str:
    """Run Python with arguments in a process that finds the packages, and return what it printed; skip without them."""
    if not FOLDER.is_dir():
        pytest.skip(f"there is no {FOLDER}; `make install` puts torchao and peft there")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(FOLDER)])}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
