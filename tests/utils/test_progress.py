from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from condistill.utils import progress
from condistill.utils.progress import (
    BYTES,
    LINE_EVERY_SEC,
    FileBars,
    Meter,
    _WorkLine,
    progress_bar,
    rate_text,
    working,
)


class Clock:
    """Seconds that pass only when a test lets them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ticks: list[Callable[[], None]] = []
        """What the real module calls every second in a thread."""

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            for tick in self.ticks:
                tick()


class Log(io.StringIO):
    """A log file that knows when it was written."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.times = clock, [clock.now]

    def write(self, text: str) -> int:
        self.times.append(self.clock.now)
        return super().write(text)

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()

    def longest_silence(self) -> float:
        times = [*self.times, self.clock.now]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()

    class Thread:
        def __init__(self, target: Callable[[], None], **_: object) -> None:
            assert target.__closure__
            cells = {name: cell.cell_contents for name, cell in zip(target.__code__.co_freevars, target.__closure__)}  # noqa: B905
            self.tick = cells["tick"]

        def start(self) -> None:
            fake.ticks.append(self.tick)

        def join(self) -> None:
            fake.ticks.remove(self.tick)

    monkeypatch.setattr(time, "monotonic", fake)
    monkeypatch.setattr(progress.threading, "Thread", Thread)
    monkeypatch.setattr(Meter.__init__, "__kwdefaults__", {"clock": fake})
    monkeypatch.setattr(progress._WorkLine.__init__, "__kwdefaults__", {"clock": fake})
    return fake


@pytest.fixture
def log(clock: Clock) -> Log:
    return Log(clock)


def console(log: Log) -> Console:
    return Console(file=log, width=200)


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (3.2, "steps", "3.20 steps/s"),
        (1 / 12.3, "steps", "12.3 s/step"),
        (1 / 200, "images", "3.33 min/image"),
        (2**21, BYTES, "2.00 MiB/s"),
        (0.5, BYTES, "0.500 B/s"),
    ],
)
def test_a_rate_below_one_a_second_is_written_as_seconds_per_unit(rate: float, unit: str, text: str) -> None:
    assert rate_text(rate, unit) == text


@pytest.mark.parametrize("seconds_per_step", [1, 7, 45, 300])
def test_a_training_is_never_silent_for_more_than_ten_seconds(clock: Clock, log: Log, seconds_per_step: int) -> None:
    with progress_bar(console(log), "small", 20, unit="steps") as advance:
        for _ in range(20):
            clock.sleep(seconds_per_step)
            advance(1, note="loss 0.1")
    assert log.longest_silence() <= LINE_EVERY_SEC
    assert log.lines[-1].startswith("small: 20/20")
    assert clock.ticks == []


def test_a_unit_that_takes_long_says_how_long_it_has_taken(clock: Clock, log: Log) -> None:
    with progress_bar(console(log), "small", 3, unit="steps") as advance:
        clock.sleep(12)
        advance(1)
        clock.sleep(25)
        advance(1, note="writing a checkpoint")
        clock.sleep(11)
    assert log.lines == [
        "small: 0/3  10 s so far",
        "small: 1/3  12.0 s/step  0:24 left",
        "small: 1/3  12.0 s/step  0:24 left  18 s since the last step",
        "small: 2/3  18.5 s/step  0:18 left  writing a checkpoint",
    ]


def test_work_that_was_found_done_says_nothing_about_the_rate(clock: Clock) -> None:
    meter = Meter(100, "steps", clock=clock)
    meter.add(60, found=True)
    assert meter.rate is None
    assert meter.left_sec is None
    clock.now += 10
    meter.add(5)
    assert meter.rate == 0.5
    assert meter.left_sec == 70


def test_the_rate_is_that_of_the_last_minute(clock: Clock) -> None:
    meter = Meter(10**6, "steps", clock=clock)
    for seconds_per_step in (0.01, 1.0):
        for _ in range(200):
            clock.now += seconds_per_step
            meter.add(1)
    assert meter.rate == pytest.approx(1.0, rel=0.05)
    assert len(meter._marks) < 130


@pytest.mark.parametrize("seconds", [0, 9, 40])
def test_work_of_unknown_length_is_named_at_once_and_every_ten_seconds(clock: Clock, log: Log, seconds: int) -> None:
    with working(console(log), "teacher: loading ./model"):
        assert log.lines == ["teacher: loading ./model"]
        clock.sleep(seconds)
    assert log.longest_silence() <= LINE_EVERY_SEC
    assert log.lines[1:] == [f"teacher: loading ./model: {n} s so far" for n in range(10, seconds + 1, 10)]


def test_work_that_may_be_short_is_named_after_a_while(clock: Clock, log: Log) -> None:
    for seconds in (1, 3):
        with working(console(log), "saving", after_sec=2):
            clock.sleep(seconds)
    assert log.lines == ["saving"]


def test_quiet_progress_prints_nothing(clock: Clock, log: Log) -> None:
    with (
        working(console(log), "loading", quiet=True),
        progress_bar(console(log), "small", 2, unit="steps", quiet=True) as advance,
    ):
        clock.sleep(30)
        advance(2)
    assert log.lines == []


def test_files_that_are_read_quickly_are_not_shown_and_slow_ones_are(clock: Clock, log: Log, tmp_path: Path) -> None:
    big, small = tmp_path / "unet.safetensors", tmp_path / "config.json"
    big.write_bytes(b"x" * 2048)
    small.write_bytes(b"x" * 4)
    bars = FileBars(console(log), "checksums", clock=clock)

    def read(path: Path, seconds: int) -> None:
        with bars.reading(path) as advance:
            for _ in range(seconds):
                clock.sleep(1)
                advance(path.stat().st_size // seconds)

    read(small, 1)
    clock.sleep(5)
    assert log.lines == []
    read(big, 16)
    assert [line.partition(": ")[2] for line in log.lines] == [
        f"{tmp_path.name}/unet.safetensors: {size} of 2.00 KiB  128 B/s  {left} left"
        for size, left in (("256 B", "0:14"), ("1.50 KiB", "0:04"))
    ]


def test_many_small_files_in_a_row_are_shown_as_well(clock: Clock, log: Log, tmp_path: Path) -> None:
    file = tmp_path / "shard"
    file.write_bytes(b"x" * 10)
    bars = FileBars(console(log), "checksums", clock=clock)
    for _ in range(40):
        with bars.reading(file) as advance:
            clock.sleep(1)
            advance(10)
    assert log.longest_silence() <= LINE_EVERY_SEC
    assert len(log.lines) == 4


def test_small_files_between_other_work_are_not_shown(clock: Clock, log: Log, tmp_path: Path) -> None:
    file = tmp_path / "shard"
    file.write_bytes(b"x" * 10)
    bars = FileBars(console(log), "checksums", clock=clock)
    for _ in range(20):
        clock.now += 0.9
        with bars.reading(file) as advance:
            clock.now += 0.01
            advance(10)
    assert log.lines == []


def test_a_terminal_shows_one_bar_and_work_inside_it_as_nothing_more(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    received = io.StringIO()
    terminal = Console(file=received, force_terminal=True, width=120)
    bars = FileBars(terminal, "checksums")
    bars._spent, bars._ended = 60.0, time.monotonic()
    with progress_bar(terminal, "evaluate", 2, unit="images") as advance:
        with bars.reading(file) as read, working(terminal, "saving"):
            read(1)
        advance(2)
    assert "2/2" in received.getvalue()
    assert not progress._ACTIVE


def test_a_spinner_and_a_bar_that_begin_at_once_are_never_both_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, is_starting = Console(file=io.StringIO(), force_terminal=True, width=120), threading.Event()
    started: list[Progress] = []
    add_task, start = Progress.add_task, Progress.start

    def slow_add(self: Progress, *args: Any, **options: Any) -> Any:
        is_starting.set()
        time.sleep(0.05)
        return add_task(self, *args, **options)

    def note_start(self: Progress) -> None:
        started.append(self)
        start(self)

    monkeypatch.setattr(Progress, "add_task", slow_add)
    monkeypatch.setattr(Progress, "start", note_start)
    work = _WorkLine(terminal, "loading", 0.0)
    work.tick()
    work._next = 0.0
    spinning = threading.Thread(target=work.tick)
    spinning.start()
    assert is_starting.wait(5)
    with progress_bar(terminal, "cache", 1, unit="images") as advance:
        advance(1)
        spinning.join()
    work.close()
    assert len(started) == 1
    assert not progress._ACTIVE
