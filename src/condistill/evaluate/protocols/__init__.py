"""Named evaluations: files with a section `evaluate`, which replaces settings of a recipe's section.

A protocol says which settings the user must give, such as the file with the captions. All other settings of the recipe
stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from condistill.config.evaluate import EvaluateSettings
from condistill.config.messages import listed, mistakes
from condistill.config.yaml_text import MAX_CHARACTERS, check_data, load_yaml
from condistill.config.yaml_tree import flow, override
from condistill.errors import CondistillError, nearest, system_message
from condistill.utils.home import resolve_path

_EXTENSIONS = (".yaml", ".yml")
_KEYS = ("description", "needs", "evaluate")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_LISTS_OF_FILES = ("prompt_files", "keywords")


@dataclass(frozen=True)
class Protocol:
    """A named evaluation."""

    name: str
    """A part of file names."""
    description: str
    evaluate: Mapping[str, Any]
    """The settings of `evaluate` that it replaces."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """By dotted name below `evaluate`, what the user must give."""

    def overrides(self) -> list[str]:
        """Return its settings as overrides of a recipe; what the user must give is emptied, except for networks.

        The network of a recipe is one for every protocol, but its prompts and its reference images are not.
        """
        emptied: dict[str, Any] = {
            name: [] if name in _LISTS_OF_FILES else None for name in self.needs if "." not in name
        }
        return [f"evaluate.{key}={flow(value)}" for key, value in [*emptied.items(), *_leaves(self.evaluate)]]

    def with_prompts(self, files: Sequence[str]) -> Protocol:
        """Return the protocol with the prompts of these files; without files, the protocol as it is."""
        return replace(self, evaluate={**self.evaluate, "prompt_files": list(files)}) if files else self

    def check(self, own: EvaluateSettings, overrides: Sequence[str]) -> None:
        """Check that the user gives what the protocol needs.

        Args:
            own: the settings of the recipe, from which networks are taken.
            overrides: those of the command, `key=value`.

        Raises:
            CondistillError: names everything that is missing.
        """
        networks, changed = own.model_dump(), {change.partition("=")[0].strip() for change in overrides}
        given = {name for name in self.needs if f"evaluate.{name}" in changed or name in self.evaluate}
        given |= {name for name in self.needs if "." in name and _value(networks, name)}
        missing = [
            f"  evaluate.{name}: {what}; add {_how(name)}" for name, what in self.needs.items() if name not in given
        ]
        if missing:
            raise CondistillError(f"the protocol {self.name} needs what is not given:\n" + "\n".join(missing))


def protocol_names() -> list[str]:
    """Return the names of the protocols that come with condistill."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def load_protocol(name: str) -> Protocol:
    """Return a protocol.

    Args:
        name: one of `protocol_names`, or the path of a YAML file.

    Raises:
        CondistillError: there is no such protocol, or its file has mistakes, which are all listed.
    """
    if name in protocol_names():
        with resources.as_file(_folder()) as folder:
            return _read(folder / f"{name}.yaml")
    if not name.lower().endswith(_EXTENSIONS):
        raise CondistillError(
            f"there is no protocol {name!r} (a file of your own ends in .yaml){nearest(name, protocol_names())}"
        )
    path = resolve_path(name)
    if not _NAME.fullmatch(path.stem):
        raise CondistillError(
            f"the protocol file {path.name} names a folder of results; use letters, digits, - and _ in its name"
        )
    return _read(path)


def protocol_of_prompts(files: Sequence[str]) -> Protocol:
    """Return the evaluation of some prompt files, whose name is that of the first."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(files[0]).stem).strip("-_")[:80] or "prompts"
    return Protocol(name, f"the prompts of {', '.join(Path(file).name for file in files)}", {"prompt_files": files})


def evaluate_settings(protocol: Protocol | None, overrides: Sequence[str]) -> EvaluateSettings:
    """Return the settings of an evaluation without a recipe: the defaults, those of a protocol, and overrides.

    Paths in the overrides start at the working directory.

    Raises:
        CondistillError: an override is about another section, the settings have mistakes, or the protocol needs more.
    """
    data: dict[str, Any] = {}
    places: dict[str, str] = {}
    for change in [*(protocol.overrides() if protocol else ()), *overrides]:
        override(data, places, change)
    if others := sorted(data.keys() - {"evaluate"}):
        raise CondistillError(
            f"pipelines are evaluated without a recipe, so -s takes settings of evaluate only, and got {others[0]}; "
            "leave it out"
        )
    section = data.get("evaluate", {})
    if not isinstance(section, dict):
        raise CondistillError("evaluate is a section; give one of its settings, such as evaluate.batch_size=4")
    if protocol is not None:
        protocol.check(EvaluateSettings(), overrides)
    found = [*check_data(data, places), *mistakes(EvaluateSettings, section, places, ("evaluate",)).values()]
    if found:
        raise CondistillError(listed(found, "the evaluation"))
    return EvaluateSettings.model_validate(_resolved(section, Path.cwd()))


def _folder() -> Any:
    return resources.files(__name__)


def _read(path: Path) -> Protocol:
    """Read a protocol file; the paths in it are relative to its folder."""
    try:
        with path.open("rb") as file:
            text = file.read(4 * MAX_CHARACTERS + 1).decode("utf-8")
    except OSError as error:
        raise CondistillError(f"the protocol cannot be read: {system_message(error)}") from error
    except UnicodeDecodeError as error:
        raise CondistillError(f"the protocol {path} is not UTF-8; save it as UTF-8") from error
    data, places = load_yaml(text, str(path))
    if not isinstance(data, dict):
        raise CondistillError(f"the protocol {path} must be a mapping with the keys {', '.join(_KEYS)}")
    section = data.get("evaluate")
    wrong = [*check_data(data, places), *_mistakes(data, places)]
    if isinstance(section, dict):
        wrong += mistakes(EvaluateSettings, _with_needs(section, data.get("needs")), places, ("evaluate",)).values()
    if wrong:
        raise CondistillError(listed(wrong, f"the protocol {path}"))
    assert isinstance(section, dict)
    description = data.get("description", path.name)
    return Protocol(path.stem, description, _resolved(section, path.parent), data.get("needs", {}))


def _mistakes(data: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
    """Return a line for every key that a protocol cannot have, and every value of the wrong kind."""

    def at(key: str) -> str:
        return f"  {places[key]}: {key}" if key in places else f"  {key}"

    lines = [
        f"{at(str(key))} is not part of a protocol, which replaces settings of evaluate only; use {', '.join(_KEYS)}"
        for key in data
        if key not in _KEYS
    ]
    if not isinstance(data.get("evaluate"), dict):
        lines.append(f"{at('evaluate')} is missing or no mapping; write the settings of the evaluation below it")
    if not isinstance(data.get("description", ""), str):
        lines.append(f"{at('description')} is no text; write one line about the protocol")
    needs = data.get("needs", {})
    if not isinstance(needs, dict) or not all(isinstance(what, str) for what in needs.values()):
        return [*lines, f"{at('needs')} is no mapping of settings to texts; write what each setting is"]
    known = _names(EvaluateSettings)
    lines += [f"{at(f'needs.{name}')} is no setting{nearest(name, known)}" for name in needs if name not in known]
    return lines


def _names(model: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings of a section."""
    names = []
    for name, info in model.model_fields.items():
        inner = getattr(info.annotation, "model_fields", None)
        names += _names(info.annotation, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return names


def _with_needs(section: Mapping[str, Any], needs: Any) -> dict[str, Any]:
    """Return the section with a file of prompts, if the user is to give one: settings about it need one."""
    is_given = isinstance(needs, dict) and "prompt_files" in needs
    return {**({"prompt_files": ["given.txt"]} if is_given else {}), **section}


def _resolved(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a section in which the names of files are absolute."""
    resolved = dict(section)
    for name in _LISTS_OF_FILES:
        resolved[name] = [_resolve(entry, folder) for entry in section.get(name, [])]
    if isinstance(section.get("reference"), str):
        resolved["reference"] = str(resolve_path(section["reference"], folder))
    if isinstance(section.get("networks"), dict):
        resolved["networks"] = {name: _resolve(source, folder) for name, source in section["networks"].items()}
    return {name: value for name, value in resolved.items() if name in section}


def _resolve(entry: Any, folder: Path) -> Any:
    """Return the absolute path of an entry that is a file in the folder; a word or a hub name is unchanged."""
    is_file = isinstance(entry, str) and (entry.startswith((".", "/", "~")) or (folder / entry).exists())
    return str(resolve_path(entry, folder)) if is_file else entry


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested settings by dotted name."""
    leaves: list[tuple[str, Any]] = []
    for key, value in settings.items():
        leaves += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return leaves


def _value(data: Any, name: str) -> Any:
    for part in name.split("."):
        data = data[part]
    return data


def _how(name: str) -> str:
    return "--prompts FILE" if name == "prompt_files" else f"-s evaluate.{name}=PATH"
