"""Change a valid recipe at random: its values, types, nesting, names and YAML syntax, and overrides of it."""

from __future__ import annotations

import copy
import datetime
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 64, 1000, 1001, 10**6, 10**9, 10**12, 2**31, 2**63 - 1, 2**63, -(2**63)),
    *(10**40, -(10**40), 10**400, 0.0, -0.0, 0.5, 1.0, 0.999999, 1.5, -0.5, 1e-320, 1e-9, 1e9, 1e38, 1e39, 1e308),
    *(math.inf, -math.inf, math.nan, "", " ", "x", "none", "null", "auto", "miniature", "1e-5", "0.5x", "nanx", "-1x"),
    *("taylor", "activation", "random", "cosine", "linear", "fp16", "wandb", "consistency", "attention_maps", "noise"),
    *("student", "moving", "x0", "min_snr", "c-base", "c-micro", "b-tiny", "koala-700m", "plain", "teacher", "small"),
    *("x" * 300, "y" * 5000, "\x1b[31m", "a\0b", "\u202etxt", "\ud800", "💥", "é", "%s%n", "{}", "$HOME", "~", "~/x"),
    *("~nosuchuser/x", "..", "/", "/dev/null", "/dev/zero/x", "a\nb", "a\tb", "*", "&a", "!x", "- a", "a: b", "#", "'"),
    *([], {}, [[]], [None], [1], [0], [1, 2], [2, 1], [1.5, 5.0], [8, 16, 16], ["a", "a"], [{}], {"a": 1}, {"a": {}}),
    *({"schedule": "none"}, {"schedule": "sigmoid"}, {"schedule": 3}, {"method": "consistency"}, {"params": 0.5}),
    *({"num_inference_steps": 4}, {"start": "noise"}, {"candidates": 2, "novelty": 1.0}, {"mid_block": [0]}, [0] * 200),
    *({"macs": "0.4x"}, {"latency": 0.5}, {"preset": "b-small"}, {1: 2}, {None: 1}, {True: 1}, {"": 1}, {"x" * 300: 1}),
    *(
        datetime.date(2020, 1, 1),
        datetime.datetime(2020, 1, 1, 3),
        b"bytes",
        {1, 2},
        [[[[[[1]]]]]],
        "0x10",
        "010",
        "1:30",
    ),
]
NAMES: list[Any] = [
    *("seed", "teacher", "student", "distill", "stpes", "Steps", "steps", "batch-size", "", " ", "x" * 300, "é", "💥"),
    *("\x1b[2J", "a.b", "..", "<<", "=", "null", "~", "yes", "1", "1.5", "variants", "schedule", "method", "lambda"),
    *("lambda_", "keep", "target", "path", "few_steps", "a/b", "con", "a" * 81, "A", "-a", "_", 1, None, True, 2.5),
]
SYNTAX = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        ",",
        "#",
        "- ",
        "? ",
        "&a ",
        "*a ",
        "!!python/name:os.system ",
        "!!binary ",
        "!x ",
    ),
    *("\t", "\n", "\r", "\r\n", " ", "  ", "'", '"', "|", ">", "---\n", "...\n", "%YAML 1.1\n", "<<: ", "\0", "\x1b"),
    *(
        "\x85",
        "\u2028",
        "\ufeff",
        "\ud7ff",
        "💥",
        "{{{{{{",
        "[[[[[[",
        "a: &a [*a]\n",
        "null: 1\n",
        "1: 2\n",
        "!!set {a}\n",
    ),
    *(
        "-" * 50,
        "[" * 40,
        "{a: " * 40,
        "- " * 40,
        "9" * 40,
        "9" * 5000,
        "x" * 5000,
        "\\",
        '"\\x1b"',
        '"\\0"',
        '"\\ud800"',
    ),
]


KINDS = ("number", "number", "value", "value", "type", "nesting", "name", "syntax", "override")


@dataclass(frozen=True)
class Mutant:
    """A changed recipe and overrides of it."""

    text: str
    overrides: tuple[str, ...]


def mutants(recipe: dict[str, Any], seed: int, count: int) -> Iterator[Mutant]:
    """Yield changed recipes; each depends on the seed and its number alone."""
    for number in range(count):
        yield mutant(recipe, random.Random(f"{seed} {number}"))


def mutant(recipe: dict[str, Any], rng: random.Random) -> Mutant:
    """Return a recipe with one to three changes."""
    data, changes = copy.deepcopy(recipe), rng.choice((1, 1, 1, 2, 3))
    kinds = [rng.choice(KINDS) for _ in range(changes)]
    for kind in kinds:
        if kind in _OF_DATA:
            _OF_DATA[kind](data, rng)
    text = _dump(data)
    for _ in range(kinds.count("syntax")):
        text = _change_text(text, rng)
    return Mutant(text, tuple(_override(data, rng) for _ in range(kinds.count("override"))))


def _dump(data: Any) -> str:
    text: str = yaml.dump(data, allow_unicode=True, sort_keys=False)  # it writes sets, bytes and dates with tags
    return text


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
    """Yield every container with a key or an index of it, and the path to the value."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield data, key, (*path, key)
        yield from _places(value, (*path, key))


def _change_value(data: Any, rng: random.Random) -> None:
    places = list(_places(data))
    if places:
        container, key, _ = rng.choice(places)
        container[key] = copy.deepcopy(rng.choice(VALUES))


def _change_number(data: Any, rng: random.Random) -> None:
    """Change a number or a switch a little, so that many changed recipes are valid."""
    places = [place for place in _places(data) if isinstance(place[0][place[1]], int | float)]
    if places:
        container, key, _ = rng.choice(places)
        value = container[key]
        changed = (value + 1, value * 2, value / 2, value - 1, value * 3, max(value // 2, 1))
        container[key] = not value if isinstance(value, bool) else rng.choice(changed)


def _change_type(data: Any, rng: random.Random) -> None:
    places = list(_places(data))
    if places:
        container, key, _ = rng.choice(places)
        value = container[key]
        choices: list[Callable[[], Any]] = [
            lambda: [value],
            lambda: {"value": value},
            lambda: str(value),
            lambda: [value] * 3,
            lambda: {str(value)[:40]: value},
            lambda: -value if isinstance(value, int | float) else None,
            lambda: float(value) if isinstance(value, int) else value,
            lambda: list(value) if isinstance(value, dict | str) else value,
        ]
        container[key] = rng.choice(choices)()


def _change_nesting(data: Any, rng: random.Random) -> None:
    places = list(_places(data))
    if not places:
        return
    container, key, path = rng.choice(places)
    action = rng.randrange(5)
    value = container[key]
    if action == 0:
        del container[key]
    elif action == 1:  # one level deeper, or many
        for _ in range(rng.choice((1, 1, 5, 30))):
            value = {path[-1]: value}
        container[key] = value
    elif action == 2:  # somewhere else
        other, other_key, _ = rng.choice(places)
        other[other_key] = copy.deepcopy(value)
    elif action == 3 and isinstance(value, dict):  # one level up
        del container[key]
        if isinstance(container, dict):
            container.update(copy.deepcopy(value))
    elif isinstance(container, dict):  # a copy of the recipe inside of itself
        container[key] = copy.deepcopy(data)


def _change_name(data: Any, rng: random.Random) -> None:
    places = [place for place in _places(data) if isinstance(place[0], dict)]
    if not places:
        return
    container, key, _ = rng.choice(places)
    name = rng.choice(NAMES) if rng.random() < 0.6 else _typo(str(key), rng)
    if rng.random() < 0.5:
        container[name] = copy.deepcopy(rng.choice(VALUES))
    else:
        container[name] = container.pop(key)


def _typo(name: str, rng: random.Random) -> str:
    position = rng.randrange(len(name) + 1)
    return name[:position] + rng.choice(("", "x", "_", " ", "s")) + name[position + rng.randrange(2) :]


_OF_DATA: dict[str, Callable[[Any, random.Random], None]] = {
    "number": _change_number,
    "value": _change_value,
    "type": _change_type,
    "nesting": _change_nesting,
    "name": _change_name,
}


def _change_text(text: str, rng: random.Random) -> str:
    position = rng.randrange(len(text) + 1)
    action = rng.randrange(6)
    if action == 0:
        return text[:position] + text[position + rng.choice((1, 1, 5, 50)) :]
    if action == 1:
        return text[:position]
    if action == 2:
        lines = text.splitlines(keepends=True)
        index = rng.randrange(len(lines)) if lines else 0
        return "".join([*lines[:index], *lines[index : index + 1] * 2, *lines[index + 1 :]])
    if action == 3:
        lines = text.splitlines(keepends=True)
        index = rng.randrange(len(lines)) if lines else 0
        return "".join([*lines[:index], rng.choice((" ", "  ", "\t")), *lines[index:]])
    return text[:position] + rng.choice(SYNTAX) + text[position:]


def _override(data: Any, rng: random.Random) -> str:
    paths = [".".join(map(str, path)) for _, _, path in _places(data)] or ["seed"]
    key = rng.choice(paths)
    if rng.random() < 0.3:
        key = rng.choice((_typo(key, rng), f"{key}.{rng.choice(NAMES)}", "", ".", f"{key}..x", "a." * 40, key.upper()))
    if rng.random() < 0.2:
        value = rng.choice(SYNTAX)
    else:
        value = yaml.dump(rng.choice(VALUES), default_flow_style=True, allow_unicode=True, width=10**6)
    return rng.choice(("{}={}", "{}={}", "{}={}", "{} = {}", "{}", "={}", "{}=={}")).format(
        key, value.removesuffix("\n...\n")
    )
