"""Progress with the rate and the remaining time: a bar in a terminal, else a line every 20 seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from condistill.utils.format import significant
from condistill.utils.terminal import print_line
from condistill.utils.text import printable

_LINE_EVERY_SEC = 20.0


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{significant(speed)} {self.unit}/s", style="progress.data.speed")


@contextmanager
def progress_bar(
    console: Console, description: str, total: int, *, unit: str, quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """Yield a function `advance(n, note="")`, to be called when n more of `total` units are done.

    Args:
        unit: plural name of one unit, such as "images".
        quiet: show nothing.
    """
    if quiet or not console.is_terminal:
        yield _line_printer(console, description, total, unit, quiet=quiet)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, speed_estimate_period=60) as progress:
        task = progress.add_task(printable(description), total=total, note="")

        def advance(n: int, note: str = "") -> None:
            if note:
                progress.update(task, note=printable(note))
            progress.advance(task, n)

        yield advance


def _line_printer(console: Console, description: str, total: int, unit: str, *, quiet: bool) -> Callable[..., None]:
    """Return a function `advance(n, note="")` that prints at most one line every 20 seconds, and a last one."""
    started = last = time.monotonic()
    done = 0

    def advance(n: int, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if quiet or not n or (now - last < _LINE_EVERY_SEC and done < total):
            return
        last = now
        rate = done / max(now - started, 1e-9)
        remaining = (total - done) / max(rate, 1e-9)
        line = f"{description}: {done}/{total}  {significant(rate)} {unit}/s  {_clock(remaining)} left  {note}".rstrip()
        print_line(console, line)

    return advance


def _clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, `3:05`, or as hours, minutes and seconds, `1:03:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
