"""One line for every mistake of a recipe: its place, the given value and the allowed values."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from condistill.config.conditioning import ScheduleSettings, schedule_class
from condistill.config.distill import DistillSettings
from condistill.config.sections import MAX_VARIANTS, Settings, StudentSettings
from condistill.config.yaml_tree import flow, merge
from condistill.errors import nearest
from condistill.utils.text import shorten

Mistakes = dict[tuple[Any, str], str]
_MOST_LINES = 30
"""Lines that a message shows."""
_MOST_MESSAGES = 100
"""Mistakes of one section that get a line."""


def mistakes(
    model: type[Settings], data: Mapping[str, Any], places: Mapping[str, str], at: tuple[str, ...] = ()
) -> Mistakes:
    """Return a line for every mistake, by its location and pydantic's message.

    Args:
        places: where each dotted key of the recipe was given, such as `line 3`.
        at: the keys from the top of the recipe to `data`.
    """
    try:
        model.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        lines = [_message(mistake, model, data, places, at) for mistake in found[:_MOST_MESSAGES]]
        lines += [""] * (len(found) - len(lines))
        return {(m["loc"], m["msg"]): line for m, line in zip(found, lines, strict=True)}
    return {}


def listed(lines: Sequence[str], source: str) -> str:
    """Return the message for the mistakes of a recipe; of very many, the first ones are shown."""
    shown = [*lines[:_MOST_LINES], *([f"  and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else [])]
    return f"{source} has {len(lines)} mistake(s):\n" + "\n".join(shown)


def variant_mistakes(data: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for every mistake that a variant adds to a section; those of the section are not repeated."""
    sections: dict[str, type[Settings]] = {"student": StudentSettings, "distill": DistillSettings}
    variants = data.get("variants")
    if isinstance(variants, Mapping) and len(variants) > MAX_VARIANTS:
        return  # a mistake of its own
    for name, changes in variants.items() if isinstance(variants, Mapping) else ():
        for section, model in sections.items() if isinstance(changes, Mapping) else ():
            base, change = data.get(section, {}), changes.get(section)
            if isinstance(base, Mapping) and isinstance(change, Mapping):
                known = mistakes(model, base, places)
                found = mistakes(model, merge(base, change), places, ("variants", str(name), section))
                yield from (line for key, line in found.items() if key not in known)


def _members(annotation: Any) -> list[type[Settings]]:
    """Return the settings models in an annotation, such as those of a union or of a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [model for part in get_args(annotation) for model in _members(part)]


def _models(root: type[Settings]) -> dict[Any, type[Settings]]:
    """Return the models below a model, by the part of a location that leads to each: a key, or the tag of a union."""
    found: dict[Any, type[Settings]] = {}
    for name, field in root.model_fields.items():
        members = _members(field.annotation)
        for member in members:
            found |= {_tag(member) if len(members) > 1 else name: member, **_models(member)}
    return found


def _tag(member: type[Settings]) -> Any:
    """Return the value that selects a member of a union, such as `progressive`."""
    return next(
        get_args(field.annotation)[0]
        for field in member.model_fields.values()
        if get_origin(field.annotation) is Literal
    )


def _model_at(root: type[Settings], location: tuple[Any, ...], parent: Any) -> type[Settings]:
    """Return the model that should have had the last key of a location; `parent` is the mapping that has it."""
    if len(location) == 1:
        return root
    keys = [part for part in location[:-1] if not isinstance(part, int)]  # without places in lists
    part = location[0] if location[0] == "variants" and len(location) == 3 else keys[-1]
    model = _models(root).get(part, root)
    return (schedule_class(parent) or model) if model is ScheduleSettings else model


@cache
def _keys(model: type[Settings]) -> dict[str, str]:
    """Return the dotted key of every setting below a model, by its last name; if two share it, the outer one's."""
    keys = {field.alias or name: field.alias or name for name, field in model.model_fields.items()}
    for name, field in model.model_fields.items():
        for member in [] if get_origin(field.annotation) is dict else _members(field.annotation):
            keys = {last: f"{name}.{key}" for last, key in _keys(member).items()} | keys
    return keys


def _suggestion(name: str, model: type[Settings], section: str) -> str:
    """Return the nearest setting of a section or of the groups in it, or all names of the section."""
    keys = _keys(model)
    close = difflib.get_close_matches(name, keys, n=1)
    if not close or "." not in keys[close[0]]:
        return nearest(name, [key for key in keys if "." not in keys[key]])
    return f"; did you mean {'.'.join(filter(None, (section, keys[close[0]])))!r}?"


def _message(mistake: Any, model: type[Settings], data: Any, places: Mapping[str, str], at: tuple[str, ...]) -> str:
    """Return the place of a mistake, the given value and the allowed values, in one line."""
    kind, location = mistake["type"], mistake["loc"]
    keys, parent = [*at], data
    for part in location:  # it also names members of unions, which are not keys of the recipe
        is_index = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if is_index or (isinstance(data, Mapping) and part in data):
            keys.append(str(part))
            parent, data = data, data[part]
    if kind == "missing":
        keys.append(str(location[-1]))
    elif kind == "union_tag_invalid":
        keys.append(mistake["ctx"]["discriminator"].strip("'"))
    key = place = ".".join(keys)
    while key and key not in places:
        key = key.rpartition(".")[0]
    shown = shorten(place, 200) or "recipe"
    inside = [known for known in places if known.startswith(f"{place}.")]  # an override of a setting below it
    key = key or (inside[0] if inside and place else "")
    where = f"  {places[key]}: {shown}" if key else f"  {shown}"
    if kind == "extra_forbidden":
        suggestion = _suggestion(str(location[-1]), _model_at(model, location, parent), place.rpartition(".")[0])
        return f"{where} is not a setting{suggestion}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "union_tag_invalid":
        return f"{where}: {mistake['ctx']['tag']!r} is unknown; use {mistake['ctx']['expected_tags']}"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    message = re.sub(r"valid dictionary( or .*)?", "mapping", message)
    message = re.sub(r"(valid )?tuple", "list", message)
    value = mistake["input"]
    written = repr(value)
    given = (
        "" if isinstance(value, dict | BaseModel) or message.startswith(written) else f" (given: {shorten(written)})"
    )
    return f"{where}: {shorten(message, 500)}{given}{_hint(value, kind)}"


def _hint(value: Any, kind: str) -> str:
    """Return how to write a number that YAML reads as text, or a word that it reads as true or false."""
    if kind in ("literal_error", "string_type") and isinstance(value, bool):
        return "; YAML reads the words no, off, yes and on as false and true, so write them in quotes"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        if math.isfinite(number):
            return f"; write {flow(int(number) if number.is_integer() else number)} without quotes"
    return ""
