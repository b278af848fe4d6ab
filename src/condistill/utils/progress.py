"""Progress a person can read: a bar with rate and time left, or a line now and then where there is no terminal."""

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

_LINE_EVERY_SEC = 20.0


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s", style="progress.data.speed")


@contextmanager
def track(
    console: Console, description: str, total: int, *, unit: str, quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """Yield `advance(n, note="")`: n more of `total` are done."""
    if quiet or not console.is_terminal:
        yield _lines(console, description, total, unit, quiet=quiet)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=60) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(n: int, note: str = "") -> None:
            if note:
                progress.update(task, note=note)
            progress.advance(task, n)

        yield advance


def _lines(console: Console, description: str, total: int, unit: str, *, quiet: bool) -> Callable[..., None]:
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
        left = (total - done) / max(rate, 1e-9)
        line = f"{description}: {done}/{total}  {rate:.1f} {unit}/s  {_clock(left)} left  {note}".rstrip()
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return advance


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
