"""Every mistake of a recipe in one line: its place, what was given, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from condistill.config.distill import (
    ConsistencySettings,
    Constant,
    DistillSettings,
    Exponential,
    Never,
    PathSettings,
    ProgressiveSettings,
    PromptChoiceSettings,
    Sigmoid,
)
from condistill.config.sections import (
    CacheSettings,
    EvaluateSettings,
    PromptSettings,
    Settings,
    StudentSettings,
    TargetSettings,
    TeacherSettings,
    VariantSettings,
)
from condistill.config.yaml_tree import merge
from condistill.errors import nearest

_SETTINGS: dict[Any, type[Settings]] = {
    "teacher": TeacherSettings,
    "prompts": PromptSettings,
    "cache": CacheSettings,
    "student": StudentSettings,
    "target": TargetSettings,
    "distill": DistillSettings,
    "evaluate": EvaluateSettings,
    "path": PathSettings,
    "prompt_choice": PromptChoiceSettings,
    "progressive": ProgressiveSettings,
    "consistency": ConsistencySettings,
    "exponential": Exponential,
    "sigmoid": Sigmoid,
    "constant": Constant,
    "none": Never,
}


def mistakes(
    model: type[Settings], data: Mapping[str, Any], places: Mapping[str, str], at: tuple[str, ...] = ()
) -> dict[tuple[Any, str], str]:
    """A line for every mistake, by its location and message; `at` is where `data` stands in the recipe."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        return {(m["loc"], m["msg"]): _message(m, model, data, places, at) for m in error.errors()}
    return {}


def variant_mistakes(data: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[str]:
    """Mistakes that a variant brings into a section; those of the section itself are told there."""
    variants = data.get("variants")
    for name, changes in variants.items() if isinstance(variants, Mapping) else ():
        for section in ("student", "distill") if isinstance(changes, Mapping) else ():
            base, change = data.get(section, {}), changes.get(section)
            if isinstance(base, Mapping) and isinstance(change, Mapping):
                known = mistakes(_SETTINGS[section], base, places)
                found = mistakes(_SETTINGS[section], merge(base, change), places, ("variants", str(name), section))
                yield from (line for key, line in found.items() if key not in known)


def _valid_names(root: type[Settings], location: tuple[Any, ...]) -> list[str]:
    """Names of the settings that may stand where the last part of a location stands."""
    match location:
        case (_,):
            model = root
        case ("variants", _, _):
            model = VariantSettings
        case _:
            model = _SETTINGS[location[-2]]
    return [field.alias or name for name, field in model.model_fields.items()]


def _message(mistake: Any, model: type[Settings], data: Any, places: Mapping[str, str], at: tuple[str, ...]) -> str:
    """One line: the place of a mistake, what was given, what is allowed."""
    kind, location = mistake["type"], mistake["loc"]
    keys = [*at]
    for part in location:  # it also names members of unions, which the recipe does not hold
        if (isinstance(data, Mapping) and part in data) or (isinstance(data, list | tuple) and isinstance(part, int)):
            keys.append(str(part))
            data = data[part]
    if kind == "missing":
        keys.append(str(location[-1]))
    elif kind == "union_tag_invalid":
        keys.append(mistake["ctx"]["discriminator"].strip("'"))
    key = place = ".".join(keys)
    while key and key not in places:
        key = key.rpartition(".")[0]
    where = f"  {places[key]}: {place}" if key else f"  {place or 'recipe'}"
    if kind == "extra_forbidden":
        return f"{where} is not a setting{nearest(str(location[-1]), _valid_names(model, (*at, *location)))}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "union_tag_invalid":
        return f"{where}: {mistake['ctx']['tag']!r} is unknown; use {mistake['ctx']['expected_tags']}"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    message = re.sub(r"valid dictionary( or .*)?", "mapping", message)
    message = re.sub(r"(valid )?tuple", "list", message)
    given = "" if isinstance(mistake["input"], dict | BaseModel) else f" (given: {mistake['input']!r})"
    return f"{where}: {message}{given}"
