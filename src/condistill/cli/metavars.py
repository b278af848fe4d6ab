"""The words that stand for values in the help of commands, such as `RECIPE`, `PATH` and `N`.

typer shows the Python type of a value where an option names no such word, and that of a flag, which takes no value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.core import TyperCommand, TyperGroup
from typer.models import ParameterInfo

BY_NAME = {
    "budget": "TIME",
    "column": "NAME",
    "device": "NAME",
    "efficiency": "FRACTION",
    "guidance": "SCALE",
    "prompt": "PROMPT",
    "prompts": "FILE",
    "run": "RUN",
    "teacher": "TEACHER",
}
"""By parameter of a command. A word that the parameter's own declaration gives comes first."""
_BY_TYPE: dict[type, str] = {bool: "", int: "N", float: "X", Path: "PATH", str: "TEXT"}


def metavar_of(name: str, annotation: Any) -> str:
    """Return the word that stands for the value of a command's parameter: empty for a flag.

    Args:
        annotation: the type of the parameter; the word for a list, or for an optional value, is that of one value.
    """
    kinds = _plain_types(annotation)
    if kinds == [bool]:
        return ""
    return BY_NAME.get(name) or next((word for kind, word in _BY_TYPE.items() if kind in kinds), "VALUE")


def _plain_types(annotation: Any) -> list[Any]:
    """Return the types inside an annotation, without None, lists and the information for typer."""
    if annotation is type(None):
        return []
    if get_origin(annotation) is None:
        return [annotation]
    parts = get_args(annotation)
    return [
        kind for part in (parts[:1] if get_origin(annotation) is Annotated else parts) for kind in _plain_types(part)
    ]


def with_metavars(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command's function after giving every parameter without a word for its value the usual one."""
    hints = get_type_hints(function, include_extras=True)
    for name, annotation in hints.items():
        for info in _typer_information(annotation):
            if info.metavar is None:
                info.metavar = metavar_of(name, annotation)
    function.__annotations__ = hints  # evaluated again, they would be without these words
    return function


def _typer_information(annotation: Any) -> list[ParameterInfo]:
    parts: tuple[Any, ...] = getattr(annotation, "__metadata__", ())
    if not parts:
        parts = tuple(info for part in get_args(annotation) for info in _typer_information(part))
    return [part for part in parts if isinstance(part, ParameterInfo)]


def _without_types(params: list[Any]) -> list[Any]:
    """Return the parameters of a command after removing the names of types that typer shows."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""  # those that typer adds itself, such as --help
        elif param.param_type_name == "argument":
            param.display_type_rich = lambda **_: None  # its metavar is the name of its row
    return params


class Command(TyperCommand):
    """A command whose help shows no names of Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with words for their values."""
        return _without_types(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the line of usage: `RECIPE` and `RUN...`, not `{RECIPE}` and `{RUN}...`."""
        return [re.sub(r"^\{(.*)\}(\.{3})?$", r"\1\2", piece) for piece in super().collect_usage_pieces(ctx)]


class Group(TyperGroup):
    """A group of commands whose help shows no names of Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with words for their values."""
        return _without_types(super().get_params(ctx))
