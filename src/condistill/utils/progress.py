"""Progress of long work, so that no command is silent for more than 10 seconds.

In a terminal it is a bar. Elsewhere, such as in a log file, it is a line every 10 seconds, also while one unit of work
takes longer than that.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from condistill.utils.format import byte_size, duration, significant
from condistill.utils.terminal import print_line
from condistill.utils.text import printable

LINE_EVERY_SEC = 10.0
"""The longest silence."""
BYTES = "bytes"
"""The unit of work whose amounts are written as sizes, such as `1.20 GiB`."""
_RATE_OVER_SEC = 60.0
_SHOW_AFTER_SEC = 2.0
"""Work that may be short is shown once it has taken this long."""
_ACTIVE: set[int] = set()
"""The consoles that show a bar or a spinner; rich allows one at a time."""
_ACTIVE_LOCK = threading.Lock()


def _claim(console: Console) -> bool:
    """Reserve a console for a bar or a spinner, and return whether it was free; any thread may call this."""
    with _ACTIVE_LOCK:
        is_free = console.is_terminal and id(console) not in _ACTIVE
        if is_free:
            _ACTIVE.add(id(console))
        return is_free


def _release(console: Console) -> None:
    _ACTIVE.discard(id(console))


class Meter:
    """Counts units of work, their rate over the last minute, and the seconds that remain."""

    def __init__(self, total: int, unit: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start at 0.

        Args:
            total: units of the whole work.
            unit: plural name of one unit, such as "images".
            clock: returns seconds.
        """
        self.total, self.unit, self.clock = total, unit, clock
        self.done = 0
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def add(self, n: int, *, found: bool = False) -> None:
        """Count n more units.

        Args:
            found: they were done before, so they say nothing about the rate.
        """
        self.done += n
        now = self.clock()
        if found:
            self._marks = deque([(now, self.done)])
            return
        if len(self._marks) > 1 and now - self._marks[-2][0] < 0.5:  # so that fast units need no memory
            self._marks.pop()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_OVER_SEC:
            self._marks.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second over the last minute, or over the last unit if it took longer; None before the first."""
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(last - first, 1e-9) if after > before else None

    @property
    def left_sec(self) -> float | None:
        """Seconds that remain at this rate; None where the rate is not known."""
        rate = self.rate
        return None if rate is None else max(self.total - self.done, 0) / rate

    @property
    def waiting_sec(self) -> float:
        """Seconds since the last unit."""
        return self.clock() - self._marks[-1][0]

    def counts(self) -> str:
        """Return how much is done of how much: `12/100`, or `1.20 of 3.44 GiB`."""
        if self.unit == BYTES:
            return f"{byte_size(self.done)} of {byte_size(self.total)}"
        return f"{self.done}/{self.total}"

    def line(self) -> str:
        """Return counts, rate and remaining time as one text."""
        parts = [self.counts()]
        if self.rate is not None:
            parts.append(rate_text(self.rate, self.unit))
        if self.left_sec is not None:
            parts.append(f"{clock_text(self.left_sec)} left")
        return "  ".join(parts)


def rate_text(rate: float, unit: str) -> str:
    """Return a rate: `3.20 steps/s`, and where one unit takes longer than a second, `12.3 s/step`."""
    if unit == BYTES:
        return f"{byte_size(rate)}/s"
    if 0 < rate < 1:
        return f"{duration(1 / rate)}/{_singular(unit)}"
    return f"{significant(rate)} {unit}/s"


def clock_text(seconds: float) -> str:
    """Return a duration as minutes and seconds, `3:05`, or as hours, minutes and seconds, `1:03:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _singular(unit: str) -> str:
    return unit.removesuffix("s")


@contextmanager
def progress_bar(
    console: Console,
    description: str,
    total: int,
    *,
    unit: str,
    quiet: bool = False,
    on_change: Callable[[Meter, str], None] = lambda _meter, _note: None,
) -> Iterator[Callable[..., None]]:
    """Yield a function `advance(n, note="", found=False)`, to be called when n more of `total` units are done.

    Args:
        unit: plural name of one unit, such as "images".
        quiet: show nothing.
        on_change: called after every `advance` with the meter and the last note.
    """
    meter, last_note = Meter(total, unit), ""
    with _shown(console, description, meter, quiet=quiet) as show:

        def advance(n: int, note: str = "", *, found: bool = False) -> None:
            nonlocal last_note
            last_note = note or last_note
            if n:
                meter.add(n, found=found)
            show(last_note)
            on_change(meter, last_note)

        on_change(meter, "")
        yield advance


@contextmanager
def _shown(console: Console, description: str, meter: Meter, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the meter with a note: as a bar in a terminal, else as lines."""
    if quiet:
        yield lambda _note: None
    elif _claim(console):
        with _bar(console, description, meter) as show:
            yield show
    else:
        lines = _Lines(console, description, meter)
        with _ticking(lines.tick):
            yield lines.show


@contextmanager
def _bar(console: Console, description: str, meter: Meter) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the meter with a note, on a console that was claimed; it is released afterwards."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        _MeterColumn(meter),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(printable(description), total=meter.total, note="")
            yield lambda note: progress.update(task, completed=meter.done, note=printable(note))
    finally:
        _release(console)


class _MeterColumn(ProgressColumn):
    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: Task) -> Text:  # noqa: ARG002 - the meter knows more
        return Text(self._meter.line(), style="progress.data.speed")


class _Lines:
    """Prints a line when 10 seconds have passed without one, and a last one."""

    def __init__(self, console: Console, description: str, meter: Meter) -> None:
        self._console, self._description, self._meter = console, description, meter
        self._last = meter.clock()
        self._note = ""
        self._is_over = False
        self._lock = threading.Lock()

    def show(self, note: str) -> None:
        """Print a line if it is time for one, or if all is done."""
        with self._lock:
            is_end = 0 < self._meter.total <= self._meter.done and not self._is_over
            self._note, self._is_over = note, self._is_over or is_end
            if is_end or self._is_due():
                self._print("")

    def tick(self) -> None:
        """Print a line if it is time for one; called every second, also while a unit takes long."""
        with self._lock:
            if self._is_due():
                self._print(self._waiting())

    def _waiting(self) -> str:
        """Return how long a unit has taken that takes longer than the time between lines."""
        waiting = self._meter.waiting_sec
        if waiting < LINE_EVERY_SEC:
            return ""
        since = f"since the last {_singular(self._meter.unit)}" if self._meter.done else "so far"
        return f"{duration(waiting, 2)} {since}"

    def _is_due(self) -> bool:
        return self._meter.clock() - self._last >= LINE_EVERY_SEC

    def _print(self, end: str) -> None:
        self._last = self._meter.clock()
        parts = [self._meter.line(), self._note, end]
        print_line(self._console, f"{self._description}: {'  '.join(part for part in parts if part)}")


@contextmanager
def working(console: Console, text: str, *, quiet: bool = False, after_sec: float = 0.0) -> Iterator[None]:
    """Show that work of unknown length is still running.

    There is a line when it begins, and then a spinner, or a line every 10 seconds.

    Args:
        text: the work, such as "teacher: loading ./model".
        quiet: show nothing.
        after_sec: show nothing before it has taken this long.
    """
    if quiet:
        yield
        return
    line = _WorkLine(console, text, after_sec)
    line.tick()
    try:
        with _ticking(line.tick):
            yield
    finally:
        line.close()


class _WorkLine:
    def __init__(
        self, console: Console, text: str, after_sec: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._text, self._clock = console, text, clock
        self._started = clock()
        self._next = after_sec
        self._is_first = True
        self._spinner: Progress | None = None

    def tick(self) -> None:
        """Print what is due; called every second."""
        elapsed = self._clock() - self._started
        if elapsed < self._next or self._spinner:
            return
        self._next = elapsed + LINE_EVERY_SEC
        if self._is_first:
            print_line(self._console, self._text)
        elif _claim(self._console):
            self._spin()
        else:
            print_line(self._console, f"{self._text}: {duration(elapsed, 2)} so far")
        if self._is_first and self._console.is_terminal:
            self._next = elapsed + _SHOW_AFTER_SEC
        self._is_first = False

    def _spin(self) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._spinner = Progress(*columns, console=self._console, transient=True)
        self._spinner.add_task(printable(self._text), total=None)
        self._spinner.start()

    def close(self) -> None:
        """Remove the spinner."""
        if self._spinner:
            self._spinner.stop()
            _release(self._console)


class FileBars:
    """Shows files that are read one after another, such as for their checksums, once that takes longer than 2 s."""

    def __init__(
        self, console: Console, description: str, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._description, self._quiet, self._clock = console, description, quiet, clock
        self._spent = 0.0
        """Seconds of reading files in a row."""
        self._ended = self._last_line = -math.inf
        """When the last file ended, and when a line was printed."""

    @contextmanager
    def reading(self, path: Path) -> Iterator[Callable[[int], None]]:
        """Yield a function to be called with the number of bytes that were read since its last call."""
        began = self._clock()
        if began - self._ended > 1:
            self._spent = 0.0
        meter = Meter(path.stat().st_size, BYTES, clock=self._clock)
        description = f"{self._description}: {path.parent.name}/{path.name}"
        with contextlib.ExitStack() as stack:
            show: Callable[[str], None] | None = None

            def advance(n: int) -> None:
                nonlocal show
                meter.add(n)
                now = self._clock()
                spent = self._spent + now - began
                if self._quiet or spent < _SHOW_AFTER_SEC:
                    return
                if show is None and _claim(self._console):
                    show = stack.enter_context(_bar(self._console, description, meter))
                if show is not None:
                    show("")
                elif not self._console.is_terminal and now - self._last_line >= LINE_EVERY_SEC:
                    self._last_line = now
                    print_line(self._console, f"{description}: {meter.line()}")

            yield advance
        self._ended = self._clock()
        self._spent += self._ended - began


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Call `tick` every second in another thread."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(1.0):
            with contextlib.suppress(OSError, ValueError):  # the output is closed
                tick()

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
