"""Settings as nested mappings: reading them from YAML with the line of every key, and changing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from condistill.errors import RecipeError
from condistill.utils.text import printable

_KINDS = {"schedule": "exponential", "method": "progressive"}
"""Settings that choose which other settings exist, and their defaults."""


def read_yaml(text: str, source: str) -> tuple[Any, dict[str, str]]:
    """Return the data, and `line n` for the dotted name of every key.

    Raises:
        RecipeError: the text is not YAML, or a key is given twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    places: dict[str, str] = {}
    for place, line in _lines(node):
        if place in places:
            raise RecipeError(f"{source} gives {place} twice, on {places[place]} and line {line}; keep one of the two")
        places[place] = f"line {line}"
    return data, places


def _lines(node: yaml.Node | None, place: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{place}.{key.value}" if place else str(key.value)
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)


def override(data: dict[str, Any], places: dict[str, str], text: str) -> None:
    """Set one setting in `data`, given as `key=value` with a dotted key and a value in YAML.

    Raises:
        RecipeError: the text is not `key=value`, or a part of its key holds no settings.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise RecipeError(f"{text!r} is not an override; write key=value, such as distill.steps=1000")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise RecipeError(f"the override {text!r} sets a key of {parent!r}, which holds no settings")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of the override {text!r} is not YAML") from error
    for place in [place for place in places if place.startswith(f"{key}.")]:
        del places[place]
    places[key] = f"override {text}"


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: mappings are merged, except that one with another `schedule` or `method` replaces.

    It has other settings than the one in `base`.
    """
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = value
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            kinds = {kind: before.get(kind, default) for kind, default in _KINDS.items()}
            if all(value.get(kind, known) == known for kind, known in kinds.items()):
                merged[key] = merge(before, value)
    return merged


def write_yaml(data: Any, **style: Any) -> str:
    """Return data as YAML in which characters that could command a terminal or hide text are escapes."""
    style = {"sort_keys": False, **style}
    text: str = yaml.safe_dump(data, allow_unicode=True, **style)
    return text if printable(text) == text else str(yaml.safe_dump(data, allow_unicode=False, **style))


def flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = write_yaml(value, default_flow_style=True, width=10**6, sort_keys=True)
    return text.removesuffix("\n...\n").strip()
