"""The directory of a run: its mark, its lock, the resolved recipe, and one directory per stage."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.run.changes import Changes, folder_sizes
from condistill.run.lock import RunLock
from condistill.run.stage_directory import Inputs, StageDir
from condistill.utils.atomic import is_temporary, recover, write_text
from condistill.utils.hashing import HashMemory, Reading
from condistill.utils.record import RecordFile

MARK_NAME = "run.json"
RECIPE_NAME = "recipe.yaml"
OLD_NAME = "old"
_EXAMPLE = '{"program": "condistill", "version": "0"}'
_HEAD = "# The resolved recipe of a run of condistill"


class RunMark(RecordFile):
    """`run.json`, which marks a folder as a run directory. Files in a folder without it are never changed."""

    format: Literal[1] = 1
    program: Literal["condistill"]
    """Other programs have files of this name, with a version too."""
    version: str
    """The version of condistill that made the directory."""


class RunDir:
    """The directory of a run."""

    def __init__(
        self, path: Path, *, say: Callable[[str], None] = lambda _: None, reading: Reading | None = None
    ) -> None:
        """Describe a run directory; nothing is read or written before `claim`.

        Args:
            say: called with lines for the user.
            reading: shows the progress of the files whose checksums are computed.
        """
        self.path = path
        self.stages: dict[str, StageDir] = {}
        """Every stage directory that was used, by name, in order."""
        self.say, self._reading = say, reading
        self._hashes: HashMemory | None = None
        self._lock: RunLock | None = None
        self._is_open = False

    @property
    def hashes(self) -> HashMemory:
        """The hashes of files that earlier commands computed."""
        if self._hashes is None:
            shown = {"reading": self._reading} if self._reading else {}
            self._hashes = HashMemory(self.path / "hashes.json", say=self.say, **shown)
        return self._hashes

    def stage(self, name: str, inputs: Callable[[], Inputs]) -> StageDir:
        """Return the directory `name` of a stage.

        Args:
            inputs: returns what the result depends on; used the first time only.
        """
        if name not in self.stages:
            self.stages[name] = StageDir(self.path, name, inputs, hashes=self.hashes, say=self.say)
        return self.stages[name]

    def claim(self) -> None:
        """Lock an existing run directory, and finish what a killed command left; nothing is made.

        Raises:
            CondistillError: another command uses it, or the folder has other files and is no run directory.
        """
        mark = self.path / MARK_NAME
        if mark.is_file():
            RunMark.read(
                mark,
                remedy=f"if {self.path} is a run directory, write {_EXAMPLE} to that file; else choose another --out",
            )
            self._take_lock()
            recover(self.path)
        elif self.path.exists() and not _is_empty(self.path):
            self._refuse()

    def create(self, recipe: Recipe | None) -> None:
        """Make the directory, if it does not exist, lock it and write the resolved recipe.

        Args:
            recipe: None for an evaluation of finished pipelines, which has none.

        Raises:
            CondistillError: it cannot be made or written, or another command uses it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CondistillError(f"{self.path} cannot be made ({error.strerror}); choose another --out") from error
        if not os.access(self.path, os.W_OK):
            raise CondistillError(f"{self.path} cannot be written; choose another --out")
        if not (self.path / MARK_NAME).is_file():
            RunMark(program="condistill", version=metadata.version("condistill")).write(self.path / MARK_NAME)
        self._take_lock()
        recover(self.path)
        self._is_open = True
        if recipe is not None:
            write_text(self.path / RECIPE_NAME, f"{_HEAD}: every setting, defaults included.\n{recipe.to_yaml()}")

    def set_aside(self, folders: Iterable[Path]) -> None:
        """Move folders to a new folder `old/<date>` in the run directory, and print their new paths.

        Where a folder is a link, the link stays, and the folder that it leads to is renamed. A folder on another disk
        than the run directory is renamed too.

        Raises:
            CondistillError: a folder cannot be moved.
        """
        date = datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S-%f")
        for folder in folders:
            self.say(f"moved {folder} to {self._set_aside(folder, date)}")

    def _set_aside(self, folder: Path, date: str) -> Path:
        place = self.path / OLD_NAME / date / folder.relative_to(self.path)
        try:
            if not folder.is_symlink():
                try:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    return folder.replace(place)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
            source = folder.resolve()
            place = source.replace(source.with_name(f"{source.name}-{date}"))
            if folder.is_symlink():
                source.mkdir()
        except OSError as error:
            raise CondistillError(
                f"{folder} cannot be moved to {place} ({error.strerror}); choose another --out"
            ) from error
        return place

    def settle_changes(self, *, update: bool) -> None:
        """Compare the results with the inputs of now; set aside what no longer belongs to them.

        Args:
            update: consent to make the stages again that depend on a change.

        Raises:
            CondistillError: something changed, and `update` is False; the message names it.
        """
        if (self.path / MARK_NAME).is_file():  # another command may have made it since `claim`
            self._take_lock()
        changes = Changes.of(self.stages.values())
        if not changes.stages:
            return
        folders, continued = changes.folders(), changes.continued()
        sizes = folder_sizes(folders, self.path)
        continues = "".join(f"\n{stage.name} continues from its newest checkpoint" for stage in continued)
        if not update:
            raise CondistillError(
                f"{self.path} has results of other inputs:\n{changes.describe()}\n"
                f"--update would move {sizes or 'nothing'} to {self.path / OLD_NAME} and make them again{continues}\n"
                "choose another --out to keep both, undo the change, or add --update"
            )
        self.say(f"update:\n{changes.describe()}{continues}")
        self.set_aside(folders)
        for stage in continued:  # after the moves: a command that is killed between them needs consent again
            stage.accept()

    def close(self) -> None:
        """Keep the computed hashes, and release the lock."""
        if self._lock is not None:
            if self._hashes is not None and self._is_open:
                self._hashes.save()
            self._lock.release()

    def _take_lock(self) -> None:
        if self._lock is None:
            self._lock = RunLock(self.path)
        self._lock.acquire()

    def _refuse(self) -> None:
        """Raise the error for a folder that is no run directory of this version."""
        recipe = self.path / RECIPE_NAME
        text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
        if text.startswith(_HEAD):
            raise CondistillError(
                f"{self.path} has a run's {RECIPE_NAME} but no {MARK_NAME}: it is a folder with a copy of the recipe, "
                "or a run of an older version, which this version cannot continue; choose another --out, or, if "
                f"{MARK_NAME} was lost, write {_EXAMPLE} to it"
            )
        raise CondistillError(
            f"{self.path} is not empty and holds no run of condistill; choose another --out, so that nothing is lost"
        )


def _is_empty(path: Path) -> bool:
    """Return whether a folder has nothing but unfinished files of a command that was killed at once."""
    return path.is_dir() and all(is_temporary(file) for file in path.iterdir())
