"""The real names and shapes of weights in the original layout, as data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(
        (Path(__file__).parents[1] / "data" / "original_names.json").read_text(encoding="utf-8")
    )
    return data


def original_counts() -> dict[str, int]:
    """Return the number of weights of each model."""
    return dict(_data()["counts"])


def original_shapes(model: str) -> Shapes:
    """Return the names and shapes of a model's weights: `sd1`, `sd2`, `sdxl` (U-Nets without prefix) or `vae`."""
    return dict(_unpacked(_data()["models"][model], ""))


def _unpacked(node: dict[str, Any] | str, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if isinstance(node, dict):
        for key, inside in node.items():
            yield from _unpacked(inside, f"{name}.{key}" if name else key)
    elif node.startswith("#"):
        yield from _unpacked(_data()["parts"][node], name)
    else:
        yield name, tuple(map(int, node.split("x")))
