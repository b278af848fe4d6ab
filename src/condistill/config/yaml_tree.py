"""Settings as nested mappings: changing them, and writing them as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from condistill.config.yaml_text import MAX_DEPTH, load_yaml
from condistill.errors import RecipeError
from condistill.utils.text import printable, shorten

_KINDS = {"schedule": "exponential", "method": "progressive"}
"""Settings that choose which other settings exist, and their defaults."""


def override(data: dict[str, Any], places: dict[str, str], text: str) -> None:
    """Set one setting in `data`, given as `key=value` with a dotted key and a value in YAML.

    Raises:
        RecipeError: the text is not `key=value`, or a part of its key holds no settings.
    """
    key, value = split_change(text, "an override")
    shown = shorten(text, 200)
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise RecipeError(f"the override {shown!r} sets a key of {parent!r}, which holds no settings; correct it")
    data[last] = load_yaml(value, f"the value of the override {shown!r}")[0]
    for place in [place for place in places if place.startswith(f"{key}.")]:
        del places[place]
    places[key] = f"override {' '.join(shown.split())}"


def split_change(text: str, kind: str, *, prefix: str = "") -> tuple[str, str]:
    """Return the dotted key and the value of a text `key=value`.

    Args:
        kind: what the text should be, for messages.
        prefix: the start of messages.

    Raises:
        RecipeError: the text is not `key=value`, or the key is not a dotted name.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")) or key.count(".") > MAX_DEPTH:
        raise RecipeError(f"{prefix}{shorten(text, 200)!r} is not {kind}; write key=value, such as distill.steps=1000")
    return key, value


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
