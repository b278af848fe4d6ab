"""The state of a run directory, for another terminal: only read, never locked, and as good as its files are.

Nothing here imports torch, so that the answer comes at once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from condistill.config.recipe import QUICK_LABEL, TEACHER, Recipe
from condistill.errors import CondistillError
from condistill.run.directory import MARK_NAME, RECIPE_NAME
from condistill.run.lock import Holder
from condistill.run.stage_directory import STAGE_NAME, StageRecord
from condistill.run.status import STATUS_NAME, RunStatus
from condistill.utils.format import duration, significant
from condistill.utils.progress import clock_text, rate_text
from condistill.utils.record import Record, RecordFile
from condistill.utils.text import first_line

_SILENT_SEC = 60.0
"""A command writes its status every 10 seconds; one that has not for this long may hang, or its host may be gone."""

State = Literal["running", "finished", "stopped", "failed", "killed", "unknown", "unfinished"]


class Part(Record):
    """A stage, or what it makes for one student."""

    stage: str
    name: str = ""
    """The student, where the stage makes something for each."""
    is_done: bool
    done: int = 0
    total: int = 0
    """Of an unfinished part; 0 where nothing is counted."""
    unit: str = ""

    def line(self) -> str:
        """Return the part and how far it is as one line."""
        name = f"{self.stage} {self.name}".rstrip()
        if self.is_done:
            return f"{name}: done"
        if not self.total:
            return f"{name}: to do"
        kept = " (newest checkpoint)" if self.stage == "distill" and self.done else ""
        return f"{name}: {self.done:,} of {self.total:,} {self.unit}{kept}"


class RunReport(RecordFile):
    """What `condistill status --json` prints."""

    format: Literal[1] = 1
    path: str
    state: State
    quick: bool = False
    process: str = ""
    """The process that runs, or that ran last, in words."""
    now: RunStatus | None = None
    """What the last command was doing; None where it is not known."""
    silent_sec: float | None = None
    """Seconds since its last sign of life."""
    parts: tuple[Part, ...] = ()
    preview: str | None = None
    """The newest preview."""
    results: tuple[str, ...] = ()
    """The finished pipelines and the report."""
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield the report as lines for people."""
        yield f"{self.path}: {self.state}" + (f", {self.process}" if self.process else "")
        if self.quick:
            yield QUICK_LABEL
        if self.now:
            yield from _now_lines(self.now, is_running=self.state == "running")
        for part in self.parts:
            yield part.line()
        if self.preview:
            yield f"newest preview: {self.preview}"
        for result in self.results:
            yield f"result: {result}"
        for warning in self.warnings:
            yield f"warning: {warning}"


def read_status(path: Path) -> RunReport:
    """Return the state of a run directory.

    Raises:
        CondistillError: there is none at this path.
    """
    if not path.is_dir():
        raise CondistillError(f"there is no folder {path}; give a run directory, such as runs/recipe")
    if not (path / MARK_NAME).is_file():
        raise CondistillError(
            f"{path} has no {MARK_NAME}, so it is no run directory; give the folder of --out, such as runs/recipe"
        )
    warnings: list[str] = []
    recipe = _recipe(path, warnings)
    now = _last_status(path, warnings)
    parts = tuple(_parts(path, recipe)) if recipe else ()
    state, process, silent = _process(path, now)
    if state == "running" and silent is not None and silent > _SILENT_SEC:
        warnings.append(f"no sign of life for {duration(silent)}: it may hang, or its machine may be gone")
    if state == "finished" and not all(part.is_done for part in parts):
        state = "unfinished"  # the last command was for some of the stages
    return RunReport(
        path=str(path),
        state=state,
        quick=bool(recipe and recipe.quick),
        process=process,
        now=now,
        silent_sec=silent,
        parts=parts,
        preview=_newest_preview(path),
        results=tuple(_results(path)),
        warnings=tuple(warnings),
    )


def _recipe(path: Path, warnings: list[str]) -> Recipe | None:
    try:
        return Recipe.load(path / RECIPE_NAME)
    except CondistillError as error:
        reason = first_line(error)
        warnings.append(f"the stages are not known: {reason}")
        return None


def _last_status(path: Path, warnings: list[str]) -> RunStatus | None:
    file = path / STATUS_NAME
    if not file.exists():
        return None
    try:
        return RunStatus.read(file, remedy="the next command writes it again")
    except (CondistillError, OSError) as error:
        warnings.append(str(error))
        return None


def _process(path: Path, now: RunStatus | None) -> tuple[State, str, float | None]:
    """Return the state of the last command, its process in words, and the seconds since its last sign of life."""
    holder, silent = Holder.of(path), _age(now)
    if holder is None:
        if now is None:
            return "unfinished", "", None
        if now.state != "running":
            return now.state, f"ended {_ago(silent)}", silent
        pid, host, since = now.pid, now.host, ""
    else:
        pid, host, since = holder.pid, holder.host, f" since {holder.since}"
        if now is not None and now.pid != pid:
            now, silent = None, None  # it has not come to its first stage
    life = "" if silent is None else f", last sign of life {_ago(silent)}"
    text = f"process {pid} on {host}{since}{life}"
    if host == socket.gethostname():
        return ("running" if _is_alive(pid) else "killed"), text, silent
    is_fresh = silent is not None and silent <= _SILENT_SEC
    return ("running" if is_fresh else "unknown"), text, silent


def _is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists; on Windows, where this cannot be known, True."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _age(now: RunStatus | None) -> float | None:
    if now is None:
        return None
    try:
        written = datetime.fromisoformat(now.written)
        return max((datetime.now().astimezone() - written).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "at an unknown time"
    return f"{round(seconds)} s ago" if seconds < 120 else f"{duration(seconds, 2)} ago"


def _parts(path: Path, recipe: Recipe) -> Iterator[Part]:
    """Yield what the stages make, in order, as far as their records and files say."""
    cache = recipe.cache
    yield Part(stage="prompts", is_done=_is_done(path / "prompts"))
    if cache.size:
        shards = len(list((path / "cache").glob("shard-*.arrow")))
        count = min(shards * cache.shard_size, cache.size)
        yield Part(stage="cache", is_done=_is_done(path / "cache"), done=count, total=cache.size, unit="images")
    for name in recipe.variants:
        folder = path / "distill" / name
        is_done, steps = _is_done(folder), recipe.variant(name)[1].steps
        done = steps if is_done else _newest_checkpoint(folder / "checkpoints")
        yield Part(stage="distill", name=name, is_done=is_done, done=done, total=steps, unit="steps")
    models = [TEACHER, *recipe.variants]
    finished = sum(_is_done(path / "evaluation" / "latents" / name) for name in models)
    is_done = _is_done(path / "evaluation" / "figures")
    yield Part(stage="evaluate", is_done=is_done, done=finished, total=len(models), unit="models")
    yield Part(stage="report", is_done=is_done and (path / "report.html").is_file())


def _is_done(folder: Path) -> bool:
    """Return whether a stage was finished; its files are not compared with their checksums."""
    try:
        return StageRecord.read(folder / STAGE_NAME, remedy="").done
    except (CondistillError, OSError):
        return False


def _numbers(folder: Path, pattern: str) -> dict[int, Path]:
    """Return the paths `step-N` of a folder by their numbers."""
    named = {path.stem.removeprefix("step-"): path for path in folder.glob(pattern)}
    return {int(number): path for number, path in named.items() if number.isdecimal()}


def _newest_checkpoint(folder: Path) -> int:
    return max(_numbers(folder, "step-*"), default=0)


def _newest_preview(path: Path) -> str | None:
    previews = [file for folder in (path / "distill").glob("*/previews") for file in _numbers(folder, "*.png").values()]
    newest = max(previews, key=lambda file: file.stat().st_mtime, default=None)
    return None if newest is None else str(newest)


def _results(path: Path) -> Iterator[str]:
    for index in sorted((path / "pipelines").glob("*/model_index.json")):
        yield str(index.parent)
    if (path / "report.html").is_file():
        yield str(path / "report.html")


def _now_lines(now: RunStatus, *, is_running: bool) -> Iterator[str]:
    if is_running:
        yield f"now: {work_line(now)}"
    elif now.reason:
        yield f"reason: {now.reason}"
    if now.losses:
        yield f"last losses: {', '.join(f'{name} {significant(value)}' for name, value in now.losses.items())}"


def work_line(now: RunStatus) -> str:
    """Return what a command that runs is doing, how far it is, and the time that is left, as one line."""
    parts = [now.label if now.label.startswith(now.stage) else f"{now.stage} {now.label}"]
    if now.total:
        parts.append(f"{now.done:,}/{now.total:,} {now.unit}")
    if now.rate is not None:
        parts.append(rate_text(now.rate, now.unit))
    if now.left_sec is not None:
        parts.append(f"{clock_text(now.left_sec)} left of this part")
    return ", ".join(part for part in parts if part.strip())


def to_json(report: RunReport) -> str:
    """Return a report as JSON, in ASCII: a label or a path can hold characters that command a terminal."""
    content: Any = report.model_dump(mode="json", exclude_none=True)
    return json.dumps(content, indent=2)
