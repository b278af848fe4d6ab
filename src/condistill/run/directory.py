"""The directory of a run: its resolved recipe, and one directory per stage with the key of its inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.utils.atomic import remove, write_text

RECIPE_NAME = "recipe.yaml"
_OWNER = "# The resolved recipe of a run of condistill"
_HEAD = f"{_OWNER}, format 2: every setting, defaults included.\n"
"""First line of the recipe in a run directory; a recipe that a user keeps somewhere has another one."""
_STATE_NAME = "stage.json"


class StageDir:
    """The directory of one stage: begun with a key, then finished; made again when the key changes."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key

    def _state(self) -> dict[str, Any]:
        file = self.path / _STATE_NAME
        if not file.exists():
            return {}
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return state

    def is_done(self, *files: str) -> bool:
        """Return whether the stage was finished with this key and all of `files` exist."""
        return self._state() == {"key": self.key, "done": True} and all((self.path / file).exists() for file in files)

    def begin(self) -> Path:
        """Return the directory to fill: emptied if its key differs, unchanged if the stage was interrupted."""
        if self._state().get("key") != self.key:
            remove(self.path)
            self.path.mkdir(parents=True)
            self._write(done=False)
        return self.path

    def finish(self) -> None:
        """Mark the stage as finished."""
        self._write(done=True)

    def _write(self, *, done: bool) -> None:
        write_text(self.path / _STATE_NAME, json.dumps({"key": self.key, "done": done}))


class RunDir:
    """The directory of a run: the resolved recipe and the directories of its stages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, update: bool = False) -> RunDir:
        """Open the directory of a recipe, or make it.

        Args:
            update: accept a directory whose recipe differs; stages that depend on the change are made again.

        Raises:
            CondistillError: the directory holds another recipe, a run of another version, or no run at all.
        """
        file = path / RECIPE_NAME
        held_text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if held_text.startswith(_HEAD):
            _check_recipe(path, held_text, recipe, update=update)
        elif held_text.startswith(_OWNER):
            raise CondistillError(
                f"{path} holds a run of condistill 0.1, which this version cannot continue; choose another --out"
            )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CondistillError(
                f"{path} is not empty and holds no run of condistill; choose another --out, so that nothing is lost"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CondistillError(f"{path} cannot be made ({error.strerror}); choose another --out") from error
        if not os.access(path, os.W_OK):
            raise CondistillError(f"{path} cannot be written; choose another --out")
        write_text(file, _HEAD + recipe.to_yaml())
        return cls(path)

    def stage(self, name: str, key: str) -> StageDir:
        """Return the directory `name` of a stage."""
        return StageDir(self.path / name, key)


def _check_recipe(path: Path, held_text: str, recipe: Recipe, *, update: bool) -> None:
    """Refuse a directory that holds a run of another recipe, unless `update`."""
    changed = sorted(_differences(yaml.safe_load(held_text), yaml.safe_load(recipe.to_yaml())))
    if changed and not update:
        raise CondistillError(
            f"{path} holds a run of another recipe (it differs in {', '.join(changed[:6])}"
            f"{' and more' if len(changed) > 6 else ''}); choose another --out, or add --update to redo "
            "the stages that depend on the change"
        )


def _differences(before: Any, after: Any, place: str = "") -> set[str]:
    """Return the dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: set[str] = set()
        for key in before.keys() | after.keys():
            inner = f"{place}.{key}" if place else str(key)
            found |= _differences(before.get(key), after.get(key), inner)
        return found
    return set() if before == after else {place}
