from __future__ import annotations

import os
import pty
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from condistill.utils.signals import Stopped, stop_at_once, stop_later

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """A background job of a shell ignores SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_ends_at_once_with_the_exit_code_of_the_signal(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as stopped, stop_at_once():
        signal.raise_signal(number)
    assert stopped.value.exit_code == 128 + number
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) is signal.default_int_handler


def test_the_line_names_the_signal_and_what_is_kept() -> None:
    assert str(Stopped(signal.SIGINT)) == ("interrupted; finished work is kept: run the same command again to resume")
    assert str(Stopped(signal.SIGTERM, "the checkpoint of step 3 is kept")) == (
        "stopped by SIGTERM; the checkpoint of step 3 is kept: run the same command again to resume"
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_training_learns_of_the_first_signal_later(number: signal.Signals) -> None:
    with stop_later() as came:
        assert came() == 0
        signal.raise_signal(number)
        assert came() == number
        signal.raise_signal(signal.SIGTERM)  # a scheduler signals a group and each of its processes
        signal.raise_signal(signal.SIGHUP)
        assert came() == number
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_does_not_disturb_the_end_that_the_first_began() -> None:
    with stop_at_once():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)


def test_what_is_ignored_as_under_nohup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_at_once(), stop_later() as came:
        signal.raise_signal(signal.SIGHUP)
        assert came() == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_thread_leaves_signals_alone() -> None:
    seen: list[int] = []

    def look() -> None:
        with stop_at_once(), stop_later() as came:
            seen.append(came())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_closed_terminal_is_no_error_for_what_is_printed_at_the_end(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from condistill.utils.signals import stop_later\n"
        "with stop_later() as came:\n"
        "    os.write(1, b'ready')\n"
        "    while not came(): pass\n"
        "    print('a line', flush=True)\n"
        "    print('an error line', file=sys.stderr, flush=True)\n"
        f"    open({os.fspath(tmp_path / 'end')!r}, 'w').write('saved')\n"
    )
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "end").read_text() == "saved"
