from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from condistill.errors import CondistillError
from condistill.run.lock import RunLock

HOLD = """
import sys, time, pathlib
from condistill.run.lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]))
lock.acquire()
print("locked", flush=True)
time.sleep(60)
"""


def test_a_second_command_is_refused_and_the_first_is_named_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        second = RunLock(tmp_path)
        with pytest.raises(CondistillError, match=rf"is in use by process {holder.pid} on .* since 2.*; wait until"):
            second.acquire()
        holder.kill()
    second.acquire()
    second.release()


def test_the_holder_is_known_while_the_lock_is_held_only(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.acquire()
    assert f'"pid": {os.getpid()}' in (tmp_path / "run.lock.json").read_text(encoding="utf-8")
    lock.release()
    lock.release()
    assert not (tmp_path / "run.lock.json").exists()


def test_a_damaged_record_of_the_holder_does_not_open_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    (tmp_path / "run.lock.json").write_text("{")
    with pytest.raises(CondistillError, match="is in use by another command"):
        RunLock(tmp_path).acquire()
    lock.release()
