"""Follow a run: what its last command does, the losses of its students, and their newest previews.

It reads the files that the run writes for other terminals. Nothing is locked, and no model is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from condistill.distill.history import HISTORY_NAME, read_history
from condistill.distill.previews import FOLDER_NAME, PreviewFolder
from condistill.errors import CondistillError
from condistill.studio.chart import Curve, loss_chart
from condistill.studio.markup import gallery, picture, status, text
from condistill.workflow.status import RunReport, read_status, work_line

_MOST_EARLIER = 12
"""Earlier previews of a student that are shown; a training may have thousands."""


class LiveView(NamedTuple):
    """The state of a run in pieces of HTML, of which some change more often than others."""

    now: str
    losses: str = ""
    previews: str = ""
    stages: str = ""


class LiveRun:
    """A run that is followed. Files that did not change are not read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._curves: dict[Path, tuple[tuple[int, int], Curve]] = {}
        self._previews: dict[tuple[Path, str], tuple[tuple[int, int], str]] = {}

    def html(self) -> LiveView:
        """Return the state of the run; one that cannot be read is a message."""
        try:
            report = read_status(self.path)
        except CondistillError as error:
            return LiveView(status(str(error), is_error=True))
        with self._lock:  # several users may follow at once
            losses, previews = dict(self.curves()), "".join(self._all_previews())
        return LiveView(
            f"<h2>{text(self.path)}</h2>{_now(report)}",
            loss_chart(losses, steps=_all_steps(report)),
            previews,
            _parts(report),
        )

    def curves(self) -> Iterator[tuple[str, Curve]]:
        """Yield the name and the losses of every student whose training has begun."""
        for file in sorted((self.path / "distill").glob(f"*/checkpoints/{HISTORY_NAME}")):
            stamp = _stamp(file)
            if stamp is None:
                continue
            if file not in self._curves or self._curves[file][0] != stamp:
                curve = [(record.step, record.loss) for record in read_history(file)]
                self._curves[file] = (stamp, curve)
            yield file.parent.parent.name, self._curves[file][1]

    def _all_previews(self) -> Iterator[str]:
        for path in sorted((self.path / "distill").glob(f"*/{FOLDER_NAME}")):
            yield self._preview(path)

    def _preview(self, path: Path) -> str:
        """Return the newest grid of a student, with the teacher's images, and the student's rows of earlier ones."""
        folder, name = PreviewFolder(path), path.parent.name
        steps = list(folder.grids())
        if not steps:
            return ""
        shown = _spread(steps[:-1])
        rows = "".join(self._once(folder.file(step), partial(_row, folder, name, step)) for step in shown)
        earlier = f"<details><summary>Earlier previews of {text(name)}</summary>{rows}</details>" if rows else ""
        newest = self._once(folder.file(steps[-1]), partial(_grid, folder, name, steps[-1]), what="grid")
        kept = {(folder.file(steps[-1]), "grid"), *((folder.file(step), "row") for step in shown)}
        self._previews = {key: made for key, made in self._previews.items() if key in kept or key[0].parent != path}
        return newest + earlier

    def _once(self, file: Path, make: Callable[[], str], *, what: str = "row") -> str:
        """Return the HTML of a file, which is made again only if the file has changed."""
        stamp, key = _stamp(file), (file, what)
        if stamp is None:
            return ""
        if key not in self._previews or self._previews[key][0] != stamp:
            self._previews[key] = (stamp, make())
        return self._previews[key][1]


def _spread(steps: list[int]) -> list[int]:
    """Return at most `_MOST_EARLIER` of some steps, the first and the last among them, evenly spread."""
    if len(steps) <= _MOST_EARLIER:
        return steps
    return [steps[round(number * (len(steps) - 1) / (_MOST_EARLIER - 1))] for number in range(_MOST_EARLIER)]


def _grid(folder: PreviewFolder, name: str, step: int) -> str:
    rows, record = folder.rows(step), folder.record()
    if rows is None or record is None:
        return ""
    pairs = [
        (
            '<span class="pair">'
            + picture(teacher, f"teacher: {prompt.prompt}")
            + picture(student, f"{name} after {step:,} steps: {prompt.prompt}")
            + "</span>",
            f"{prompt.prompt} ({prompt.split})",
        )
        for teacher, student, prompt in zip(*rows, record.prompts, strict=True)
    ]
    title = f"{text(name)} after {step:,} steps (right), and the teacher (left)"
    return f"<h3>{title}</h3>{gallery(pairs, wide=True)}"


def _row(folder: PreviewFolder, name: str, step: int) -> str:
    """Return the images of the student after a number of steps, in the order of the prompts."""
    rows, record = folder.rows(step), folder.record()
    if rows is None or record is None:
        return ""
    images = [
        picture(image, f"{name} after {step:,} steps: {prompt.prompt}", kind="webp")
        for image, prompt in zip(rows[1], record.prompts, strict=True)
    ]
    return f'<figure class="row"><figcaption>step {step:,}</figcaption><div>{"".join(images)}</div></figure>'


def _now(report: RunReport) -> str:
    """Return what the run does now, with its progress and the time that is left."""
    now, progress, lines = report.now, None, []
    if now is not None and report.state == "running":
        lines.append(work_line(now))
        progress = (now.done, now.total) if now.total else None
    elif now is not None and now.reason:
        lines.append(now.reason)
    lines.append(report.state + (f", {report.process}" if report.process else ""))
    warnings = "".join(status(f"warning: {warning}", is_error=True) for warning in report.warnings)
    return status(lines[0], progress=progress) + "".join(status(line) for line in lines[1:]) + warnings


def _parts(report: RunReport) -> str:
    lines = "".join(f"<li>{text(part.line())}</li>" for part in report.parts)
    return f"<h3>Stages</h3><ul>{lines}</ul>" if lines else ""


def _all_steps(report: RunReport) -> int:
    """Return the optimiser steps of the longest training; 0 where they are not known."""
    return max((part.total for part in report.parts if part.stage == "distill"), default=0)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return what changes with a file; None where it has gone."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
