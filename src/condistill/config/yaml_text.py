"""Read YAML that anyone may have written: plain values only, and no more of them than a recipe can need.

PyYAML expands aliases without a limit, recurses as deep as the text does, keeps the last of two equal keys, and reads
`1:30` as 90 and `010` as 8. All of these are refused here, with the line.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from condistill.errors import RecipeError
from condistill.utils.text import shorten

MAX_CHARACTERS = 500_000
"""Of a recipe; prompts are in files of their own."""
MAX_VALUES = 20_000
"""Keys and values of a recipe, after aliases are expanded."""
MAX_DEPTH = 20
"""Mappings and lists inside each other."""
MAX_TEXT = 4096
"""Characters of one text, which is also the longest path of most systems."""
MAX_INTEGER = 2**63 - 1
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_ALLOWED = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null")}
_PLAIN_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")

Node = yaml.Node


def load_yaml(text: str, source: str) -> tuple[Any, dict[str, str]]:
    """Return the data of a text, and `line n` for the dotted name of every key.

    Args:
        source: the file or the option that the text is from, for messages.

    Raises:
        RecipeError: the text is not YAML, or is YAML that a recipe cannot contain.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(
            f"{source} has {len(text):,} characters, and a recipe has at most {MAX_CHARACTERS:,}; "
            "move what is long to a file of prompts"
        )
    if found := _NOT_ALLOWED.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise RecipeError(f"{source}, line {line}: the character {found[0]!a} is not allowed in YAML; remove it")
    try:
        _check_size(text, source)
        tree = _Tree(source)
        data = tree.build(yaml.compose(text, Loader=_LOADER), "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_text = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(f"{source} is not YAML: {line_text}{error.problem or error.context}; correct it") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not YAML: {shorten(' '.join(str(error).split()))}; correct it") from error
    return data, tree.places


def _check_size(text: str, source: str) -> None:
    """Refuse nesting and numbers of values that would take long to read, from the events of the parser alone."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            mark = event.start_mark
            line = mark.line + 1 if mark else 1
            raise RecipeError(
                f"{source}, line {line}: more than {MAX_DEPTH} levels are nested; a recipe needs "
                "fewer, so remove some brackets or indentation"
            )
        if count > 2 * MAX_VALUES:
            raise RecipeError(_too_many(source))


def _too_many(source: str) -> str:
    return f"{source} has more than {MAX_VALUES:,} values; move long lists to a file of prompts, and use fewer aliases"


class _Tree:
    """Builds data from the nodes of a text."""

    def __init__(self, source: str) -> None:
        self.places: dict[str, str] = {}
        self._source = source
        self._values = 0
        self._open: list[Node] = []
        """The collections that the present node is in."""
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: Node | None, place: str) -> Any:
        """Return the data of a node; `place` is its dotted key."""
        if node is None:
            return None
        self._values += 1
        if self._values > MAX_VALUES:
            raise RecipeError(_too_many(self._source))
        if any(node is outer for outer in self._open):
            raise self._mistake(node, place, "the alias is inside of what it stands for; write the value out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"{_TAG}{kind}":
            raise self._mistake(node, place, f"the tag {_shown(node.tag)} is not allowed; write plain values")
        if len(self._open) >= MAX_DEPTH:
            raise self._mistake(node, place, f"more than {MAX_DEPTH} levels are nested; use fewer aliases")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            return [self.build(item, f"{place}.{number}") for number, item in enumerate(node.value)]
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, place: str) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_TAG}merge":
                merged = {**self._merged(value_node, place), **merged}
                continue
            key = self._key(key_node, place)
            here = f"{place}.{key}" if place else key
            if key in own:
                raise RecipeError(
                    f"{self._source} gives {here} twice, on line {lines[key]} and line {line}; keep one of the two"
                )
            lines[key] = line
            self.places[here] = f"line {line}"
            own[key] = self.build(value_node, here)
        return {**merged, **own}

    def _merged(self, node: Node, place: str) -> dict[str, Any]:
        """Return the mapping, or all mappings of the list, that a key `<<` adds; the first has priority."""
        mappings = self.build(node, place)
        found: dict[str, Any] = {}
        for mapping in mappings if isinstance(mappings, list) else [mappings]:
            if not isinstance(mapping, Mapping):
                raise self._mistake(node, place, "the key << needs an alias of a mapping, such as <<: *name")
            found = {**mapping, **found}
        return found

    def _key(self, node: Node, place: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._mistake(node, place, "a key is a mapping or a list; write a name")
        if node.tag != f"{_TAG}str":
            raise self._mistake(node, place, f"the key {_shown(node.value)} is not text; write it in quotes")
        return str(node.value)

    def _scalar(self, node: yaml.ScalarNode, place: str) -> Any:
        kind, value = node.tag.removeprefix(_TAG), str(node.value)
        if kind == "timestamp":
            raise self._mistake(node, place, f"{_shown(value)} is a date in YAML; write it in quotes")
        if kind in ("merge", "value"):
            raise self._mistake(node, place, f"{_shown(value)} has a special meaning in YAML; write it in quotes")
        if node.tag not in _SCALARS:
            raise self._mistake(node, place, f"the tag {_shown(node.tag)} is not allowed; write a plain value")
        if (kind == "int" and not _PLAIN_INTEGER.fullmatch(value)) or (kind == "float" and ":" in value):
            message = f"{_shown(value)} is not a plain number; write decimal digits, or text in quotes"
            raise self._mistake(node, place, message)
        if kind == "int" and (len(value) > 30 or abs(int(value)) > MAX_INTEGER):
            raise self._mistake(
                node, place, f"{_shown(value)} has {len(value)} digits, too many for any setting; write less"
            )
        try:
            return getattr(self._scalars, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError) as error:  # a value with an explicit tag, such as !!int x
            raise self._mistake(node, place, f"{_shown(value)} is not of the type {kind}; remove the tag") from error

    def _mistake(self, node: Node, place: str, message: str) -> RecipeError:
        where = f"{place.lstrip('.')}: " if place else ""
        return RecipeError(f"{self._source}, line {node.start_mark.line + 1}: {where}{message}")


def _shown(text: str) -> str:
    return repr(shorten(text.replace(_TAG, "!!"), 60))


def check_data(data: Any, places: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each key and value that no recipe can have, whether it came from YAML or from Python.

    Args:
        places: where each dotted key was given, such as `line 3`.
    """
    found: list[str] = []
    count = itertools.count(1)
    queue: deque[tuple[Any, tuple[str, ...]]] = deque([(data, ())])
    while queue:
        value, keys = queue.popleft()
        if next(count) > MAX_VALUES:
            found.append(f"  recipe: it has more than {MAX_VALUES:,} values; move long lists to a file of prompts")
            break
        problem = _problem(value, len(keys))
        if problem:
            found.append(f"{_where(keys, places)}: {problem}")
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    found.append(f"{_where(keys, places)}: the key {_shown(repr(key))} is not text; write it in quotes")
                elif problem := _problem(key, 0) or ("it has several lines; write one" if "\n" in key else None):
                    found.append(f"{_where((*keys, key), places)}: the name {problem.removeprefix('it ')}")
                else:
                    queue.append((inner, (*keys, key)))
        elif isinstance(value, list | tuple):
            queue += [(inner, (*keys, str(number))) for number, inner in enumerate(value)]
    yield from found


def _problem(value: Any, depth: int) -> str | None:
    """Return why a value cannot be in a recipe, and what to do."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            return f"it has {len(value):,} characters; write at most {MAX_TEXT:,}"
        if bad := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", value):
            return f"it contains {bad[0]!a}, which is a control character or not Unicode; remove it"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "the number is larger than any setting allows; write a smaller one"
    if isinstance(value, Mapping | list | tuple) and depth > MAX_DEPTH:
        return f"more than {MAX_DEPTH} levels are nested; remove some"
    return None


def _where(keys: tuple[str, ...], places: Mapping[str, str]) -> str:
    """Return the indented place of a key: its line if it is known, and its dotted name."""
    for length in range(len(keys), 0, -1):
        if known := places.get(".".join(keys[:length])):
            return f"  {known}: {shorten('.'.join(keys), 200)}"
    return f"  {shorten('.'.join(keys), 200) or 'recipe'}"
