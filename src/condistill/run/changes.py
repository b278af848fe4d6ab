"""What changed since the results in a run directory were made: which inputs, and which stages depend on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condistill.run.stage_directory import StageDir
from condistill.utils.format import byte_size

_SHOWN = 8


@dataclass(frozen=True)
class Changes:
    """The stages whose results belong to other inputs, and what is different."""

    stages: Sequence[StageDir]
    """In the order in which they run."""
    reasons: Sequence[str]
    """Lines for people."""
    cheap: Sequence[StageDir] = ()
    """Further such stages, which need no consent because they cost little."""

    @classmethod
    def of(cls, stages: Iterable[StageDir]) -> Changes:
        """Compare the results in a run directory with the inputs of now."""
        other = [stage for stage in stages if stage.holds_other_results()]
        changed = [stage for stage in other if stage.is_costly or stage.record() is None]
        names = {stage.name for stage in changed}
        reasons: dict[str, None] = {}
        for stage in changed:
            record = stage.record()
            if record is None:
                reasons[_unknown(stage)] = None
                continue
            for place, before, after in differences(record.inputs, stage.inputs):
                if place not in names:  # that stage has its own reasons
                    reasons[_reason(place, before, after)] = None
        return cls(changed, list(reasons), [stage for stage in other if stage not in changed])

    def continued(self) -> list[StageDir]:
        """Return the stages that continue with the new inputs instead of starting again."""
        records = [(stage, stage.record()) for stage in self.stages]
        return [stage for stage, record in records if record and stage.can_continue(record.inputs, stage.inputs)]

    def folders(self) -> list[Path]:
        """Return the folders that are set aside before the stages are made again.

        The directory of a stage follows its outputs, whose origin it records: a command may be killed between them.
        """
        kept = {stage.name for stage in self.continued()}
        folders = []
        for stage in [*self.stages, *self.cheap]:
            folders += [folder for folder in stage.outputs if folder.is_dir()]
            folders += [stage.path] if stage.name not in kept and stage.path.is_dir() else []
        return folders

    def describe(self) -> str:
        """Return one line per reason."""
        shown = [f"  {reason}" for reason in self.reasons[:_SHOWN]]
        more = len(self.reasons) - _SHOWN
        return "\n".join([*shown, f"  and {more} more"] if more > 0 else shown)


def folder_sizes(folders: Iterable[Path], root: Path) -> str:
    """Return folders relative to a run directory with their sizes, such as `cache (1.2 GiB), pipelines/small`."""
    return ", ".join(f"{_relative(folder, root)} ({byte_size(_bytes(folder))})" for folder in folders)


def _relative(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix()


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def differences(before: Any, after: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """Return the dotted name, the old and the new value of everything that differs between nested mappings.

    A value of None stands for a name that one of them does not have.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for key in sorted(before.keys() | after.keys(), key=str):
            inner = f"{place}.{key}" if place else str(key)
            found += differences(before.get(key), after.get(key), inner)
        return found
    return [] if _plain(before) == _plain(after) else [(place, before, after)]


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _unknown(stage: StageDir) -> str:
    if stage.path.is_dir():
        return f"{stage.path} has no readable stage.json, so it is not known what it was made from"
    outputs = ", ".join(map(str, stage.outputs))
    return f"{stage.path} is missing, so it is not known what {outputs} was made from"


def _reason(place: str, before: Any, after: Any) -> str:
    section, _, file = place.partition(" file ")
    if file:
        change = "was added" if before is None else "was removed" if after is None else "has changed"
        return f"{section} file {file} {change}"
    return f"{place} was {_written(before)} and is now {_written(after)}"


def _written(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
