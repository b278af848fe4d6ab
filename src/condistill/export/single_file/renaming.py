"""Rename the weights of a transformer from diffusers' names to the original ones, by tables.

A table has one row for each layer of the original code: its name, and the names in diffusers of the layers that it
joins. The endings `.weight` and `.bias` need no rows of their own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.export.source import Config, Shape

Table = Mapping[str, tuple[str, ...]]
"""By the original name of a layer or weight: those in diffusers, which are joined along the first dimension."""
COMFYUI, SDCPP = "ComfyUI", "stable-diffusion.cpp"
_IN_A_LIST = re.compile(r"(?P<blocks>\w+)\.(?P<number>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Blocks:
    """A list of blocks, which keep their numbers."""

    original: str
    """Name of the list in the original code."""
    table: Table
    """Names within a block."""


@dataclass(frozen=True)
class Place:
    """Where a weight goes in the file."""

    name: str
    """Original name of the whole weight."""
    parts: tuple[str, ...]
    """Names in diffusers of all weights that are joined in it."""


@dataclass(frozen=True)
class Renaming:
    """The tables of a class of transformer."""

    table: Table
    """Names outside of the lists of blocks."""
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    """By the name of the list in diffusers."""
    halves_swapped: frozenset[str] = frozenset()
    """Original names of layers that give shift and scale, in the order opposite to diffusers'."""

    def tensors(
        self, weights: Mapping[str, Tensor], swapped: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the original name of each weight, and the weight.

        Args:
            weights: by their names in diffusers.
            swapped: more layers as in `halves_swapped`.

        Raises:
            CondistillError: a weight has no place in the original code, or one that is joined with others is alone.
        """
        for name in weights:
            place = self.place(name)
            missing = [part for part in place.parts if part not in weights]
            if missing:
                raise CondistillError(f"the denoiser has {name}, and not {missing[0]}; save the pipeline again")
            if place.parts[0] != name:
                continue  # part of a weight that is yielded with its first part
            whole = weights[name] if len(place.parts) == 1 else torch.cat([weights[part] for part in place.parts])
            is_swapped = place.name.rpartition(".")[0] in self.halves_swapped | swapped
            yield place.name, torch.cat(whole.chunk(2)[::-1]) if is_swapped else whole

    def place(self, name: str) -> Place:
        """Return where a weight goes.

        Raises:
            CondistillError: it has no place in the original code.
        """
        found = _IN_A_LIST.fullmatch(name)
        if found and found["blocks"] in self.blocks:
            blocks, number = self.blocks[found["blocks"]], found["number"]
            before, original, rest = f"{found['blocks']}.{number}.", f"{blocks.original}.{number}.", found["rest"]
            rows = self._rows[found["blocks"]]
        else:
            before, original, rest, rows = "", "", name, self._rows[""]
        layer, _, ending = rest.rpartition(".")
        if rest in rows:
            row, tail = rows[rest], ""
        elif layer in rows:
            row, tail = rows[layer], f".{ending}"
        else:
            raise CondistillError(
                f"the denoiser has {name}, which has no place in the original layout of its class; merge adapters and "
                "save the pipeline again"
            )
        return Place(original + row.name + tail, tuple(before + part + tail for part in row.parts))

    def restored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights under their names in diffusers; all that are joined in one must have the same size."""
        tables = [("", "", self.table), *((name, each.original, each.table) for name, each in self.blocks.items())]
        found: dict[str, Tensor] = {}
        for original, tensor in tensors.items():
            for name, original_name, table in tables:
                number = re.match(rf"{original_name}\.(\d+)\.", original) if name else re.match("()", original)
                rest = original[number.end() :] if number else ""
                row = next((row for row in (rest, rest.rpartition(".")[0]) if row in table), None)
                if number is None or row is None:
                    continue
                before, tail = f"{name}.{number[1]}." if name else "", rest[len(row) :]
                parts = tensor.chunk(len(table[row]))
                found |= {before + part + tail: each for part, each in zip(table[row], parts, strict=True)}
        return found

    @cached_property
    def _rows(self) -> dict[str, dict[str, Place]]:
        """Return the row of each name in diffusers, by the name of the list; "": outside of the lists."""
        tables = {"": self.table, **{name: blocks.table for name, blocks in self.blocks.items()}}
        return {
            list_name: {part: Place(original, parts) for original, parts in table.items() for part in parts}
            for list_name, table in tables.items()
        }


def full_config(shape: Shape) -> Config:
    """Return the config of a denoiser with the default of its class for each value that the config lacks."""
    import diffusers

    kind: Any = getattr(diffusers, shape.denoiser_class)
    arguments = inspect.signature(kind.__init__).parameters.values()
    defaults = {each.name: each.default for each in arguments if each.default is not each.empty}
    return {**defaults, **shape.denoiser}


def differing(config: Config, wanted: Mapping[str, Any], program: str = COMFYUI) -> tuple[str, ...]:
    """Return a reason for each value of a config that is not as a program has it, lists and tuples being the same."""
    found = []
    for name, value in wanted.items():
        given = config.get(name)
        given = tuple(given) if isinstance(given, list) else given
        if given != value:
            found.append(f"{name} is {given}, and {program} builds it with {value} only")
    return tuple(found)
