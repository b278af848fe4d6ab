"""The directory of one stage: what it was made from, whether it is finished, and checksums of its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from condistill.errors import CondistillError
from condistill.utils.atomic import is_temporary
from condistill.utils.hashing import HashMemory, key_of
from condistill.utils.record import CheckedFile, Record

STAGE_NAME = "stage.json"
COPY_NAME = "stage-copy.json"
"""The same record again: without any record, results look like files of the user, and are not used."""
Inputs = Mapping[str, Any]
"""Settings, hashes of files and keys of other stages, by name."""


class FileStamp(Record):
    """The size and the checksum of a file when its stage was finished."""

    bytes: int
    sha256: str
    role: Literal["needed", "noted", "optional"] = "needed"
    """A stage is made again if a needed file is damaged. Damage of the others is only named; of an optional file, which
    the user may delete, it is not named that the file is missing."""


class StageRecord(CheckedFile):
    """`stage.json`: what a stage was made from, and what it made."""

    format: Literal[2] = 2
    key: str
    """Hash of `inputs`."""
    done: bool
    inputs: dict[str, Any]
    """Everything that the result depends on."""
    layout: dict[str, Any] = Field(default_factory=dict)
    """Settings that change how the result is divided into files, but not the result; see `StageDir.layout`."""
    files: dict[str, FileStamp] = Field(default_factory=dict)
    """The files of a finished stage, relative to the run directory."""


class StageDir:
    """The directory of a stage. What it holds belongs to the inputs in its `stage.json`."""

    def __init__(
        self,
        root: Path,
        name: str,
        inputs: Callable[[], Inputs],
        *,
        hashes: HashMemory | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Describe the directory `name` of a run; nothing is read or written.

        Args:
            root: the run directory.
            inputs: returns what the result depends on; called once, when the key is needed.
            hashes: the hashes of files that are known already.
            say: called with a line for the user about damaged files.
        """
        self.root, self.name = root, name
        self.path = root / name
        self.is_costly = True
        """Whether it is made again only with the user's consent."""
        self.outputs: tuple[Path, ...] = ()
        """Directories outside of `path` that the stage makes."""
        self.default_layout: Inputs = {}
        self.can_continue: Callable[[Inputs, Inputs], bool] = lambda _old, _new: False
        """Whether what was made from old inputs can be continued with new ones."""
        self._inputs = inputs
        self._hashes = hashes or HashMemory(root / "hashes.json")
        self._say = say
        self._reported: set[Path] = set()

    @cached_property
    def inputs(self) -> Inputs:
        """What the result depends on."""
        return self._inputs()

    @property
    def key(self) -> str:
        """The hash of the inputs."""
        return key_of(self.name, self.inputs)

    def record(self) -> StageRecord | None:
        """Return what `stage.json` says, or its copy if it is damaged; None if there is neither."""
        for name in (STAGE_NAME, COPY_NAME):
            try:
                record = StageRecord.read(self.path / name, remedy="")
            except CondistillError:
                continue
            if name == COPY_NAME:
                self._report(self.path / STAGE_NAME, "is missing or damaged; its copy is used")
            return record
        return None

    @property
    def layout(self) -> Inputs:
        """How the result is divided into files: as it was begun, whatever the recipe now says."""
        record = self.record()
        return {**self.default_layout, **(record.layout if record else {})}

    def holds_other_results(self) -> bool:
        """Return whether the directory, or an output, has files that were made from other or unknown inputs."""
        if not _has_files(self.path):
            return any(map(_has_files, self.outputs))
        record = self.record()
        return record is None or record.key != self.key

    def is_done(self) -> bool:
        """Return whether the stage was finished with these inputs, and no needed file is missing or damaged.

        A line for the user names each file that is missing or damaged, once.
        """
        record = self.record()
        if record is None or record.key != self.key or not record.done:
            return False
        is_whole = True
        for name, stamp in record.files.items():
            if fault := self._fault(self.root / name, stamp):
                is_whole = is_whole and stamp.role != "needed"
                outcome = "it is made again" if stamp.role == "needed" else "it is not made again"
                self._report(self.root / name, f"{fault}; {outcome}")
        return is_whole

    def damaged(self) -> list[Path]:
        """Return the needed files of the finished stage that are missing or changed."""
        record = self.record()
        stamps = record.files if record else {}
        return [
            self.root / name
            for name, stamp in stamps.items()
            if stamp.role == "needed" and self._fault(self.root / name, stamp)
        ]

    def _fault(self, path: Path, stamp: FileStamp) -> str:
        """Return what is wrong with a file; nothing if it is as it was."""
        if not path.is_file():
            return "" if stamp.role == "optional" else "is missing"
        is_same = path.stat().st_size == stamp.bytes and self._hashes.of(path) == stamp.sha256
        return "" if is_same else "is damaged or was edited"

    def _report(self, path: Path, text: str) -> None:
        """Print a line about a file, once."""
        if path not in self._reported:
            self._reported.add(path)
            self._say(f"{path} {text}")

    def begin(self) -> Path:
        """Return the directory to fill. Files of an interrupted stage with the same inputs are kept.

        Raises:
            CondistillError: the directory has files of other inputs, or files that no stage made.
        """
        if self.holds_other_results():
            raise CondistillError(
                f"{self.path} has files that this run did not make; move or rename the folder, or add --update to let "
                "the run move it"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise CondistillError(
                f"{self.path} is no folder, or a link to a folder that does not exist; make that folder, or remove "
                "the link"
            ) from error
        self._write(done=False)
        return self.path

    def begin_again(self) -> Path:
        """Return the directory to fill, without the files of the finished stage. Files of the user stay.

        Raises:
            CondistillError: see `begin`.
        """
        record = self.record()
        if record is not None:
            for path in (self.root / name for name in record.files):
                if path.is_file():
                    path.unlink()
            self._write(done=False)
        return self.begin()

    def finish(
        self, files: Iterable[Path] | None = None, *, noted: Iterable[Path] = (), optional: Iterable[Path] = ()
    ) -> None:
        """Mark the stage as finished.

        Args:
            files: the files that must stay as they are; None: all files of the directory.
            noted: files whose damage or loss is named, but for which the stage is not made again.
            optional: files whose damage is named, and which may be deleted.
        """
        needed = _files_below(self.path) if files is None else files
        self._write(
            done=True,
            files={
                **self._stamps(needed, "needed"),
                **self._stamps(noted, "noted"),
                **self._stamps(optional, "optional"),
            },
        )

    def _stamps(self, files: Iterable[Path], role: Literal["needed", "noted", "optional"]) -> dict[str, FileStamp]:
        return {
            os.path.relpath(path, self.root): FileStamp(
                bytes=path.stat().st_size, sha256=self._hashes.of(path), role=role
            )
            for path in files
            if path.is_file()
        }

    def accept(self) -> None:
        """Let an unfinished or finished result of other inputs continue with these; see `can_continue`."""
        self._write(done=False)

    def _write(self, *, done: bool, files: Mapping[str, FileStamp] | None = None) -> None:
        inputs, layout = dict(self.inputs), dict(self.layout)
        record = StageRecord(key=self.key, done=done, inputs=inputs, layout=layout, files=dict(files or {}))
        record.write(self.path / STAGE_NAME)
        record.write(self.path / COPY_NAME)


def _has_files(path: Path) -> bool:
    """Return whether a path is a directory that is not empty; unfinished files do not count."""
    return path.is_dir() and not all(is_temporary(file) for file in path.iterdir())


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a stage, without its record and without unfinished files."""
    for path in sorted(folder.rglob("*")):
        hidden = any(is_temporary(folder / part) for part in path.relative_to(folder).parts)
        if path.is_file() and path not in (folder / STAGE_NAME, folder / COPY_NAME) and not hidden:
            yield path
