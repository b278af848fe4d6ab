"""Where it is done: one directory per run, one folder per stage, each with the key of what it was made from."""

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
_HEAD = "# The resolved recipe of a run of condistill: every setting, defaults included.\n"
"""Tells a run's directory from one in which somebody keeps a recipe."""
_STATE_NAME = "stage.json"


class Stage:
    """One folder of a run directory: begun with a key, then finished; done again where the key differs."""

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
        """Whether the whole artefact is there, these files of it too, made from the same settings and inputs."""
        return self._state() == {"key": self.key, "done": True} and all((self.path / file).exists() for file in files)

    def begin(self) -> Path:
        """Return the folder to fill: emptied if its key is another, as it was left if interrupted."""
        if self._state().get("key") != self.key:
            remove(self.path)
            self.path.mkdir(parents=True)
            self._write(done=False)
        return self.path

    def finish(self) -> None:
        """Mark the artefact as whole."""
        self._write(done=True)

    def _write(self, *, done: bool) -> None:
        write_text(self.path / _STATE_NAME, json.dumps({"key": self.key, "done": done}))


class RunDir:
    """A run's directory: the resolved recipe and the folders of its stages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, update: bool = False) -> RunDir:
        """Open or make the directory of a recipe.

        Args:
            update: take over a directory whose recipe differs; stages that depend on the change are redone.

        Raises:
            CondistillError: the directory holds another recipe, or something that is no run at all.
        """
        file = path / RECIPE_NAME
        held_text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if held_text.startswith(_HEAD):
            held = yaml.safe_load(held_text)
            changed = sorted(_differences(held, yaml.safe_load(recipe.to_yaml())))
            if changed and not update:
                raise CondistillError(
                    f"{path} holds a run of another recipe (it differs in {', '.join(changed[:6])}"
                    f"{' and more' if len(changed) > 6 else ''}); choose another --out, or add --update to redo "
                    "the stages that depend on the change"
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

    def stage(self, name: str, key: str) -> Stage:
        """The stage that keeps its artefact in the folder `name`."""
        return Stage(self.path / name, key)


def _differences(before: Any, after: Any, place: str = "") -> set[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        found: set[str] = set()
        for key in before.keys() | after.keys():
            here = f"{place}.{key}" if place else str(key)
            found |= _differences(before.get(key), after.get(key), here)
        return found
    return set() if before == after else {place}
