"""Registries of named objects, such as metrics, and plugins that add to them.

A plugin is a module that registers objects when it is imported. An installed package lists its plugins in the entry
point group `condistill.plugins`; recipes can then use the objects by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from typing import Generic, TypeVar

from condistill.errors import CondistillError, nearest

T = TypeVar("T")
PLUGINS = "condistill.plugins"
"""The entry point group of plugins."""


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name, in the order of their registration."""

    def __init__(self, kind: str, builtin: Mapping[str, T] | None = None) -> None:
        """Create a registry.

        Args:
            kind: the word for an entry in messages, such as "metric".
            builtin: the first entries.
        """
        self.kind = kind
        self._entries: dict[str, T] = dict(builtin or {})

    def register(self, name: str, entry: T) -> T:
        """Add an entry and return it.

        Raises:
            CondistillError: the name belongs to another entry already.
        """
        if self._entries.get(name, entry) is not entry:
            raise CondistillError(f"the {self.kind} {name!r} is registered already; choose another name")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """Return the entry with this name.

        Raises:
            CondistillError: no entry has this name; the message suggests the closest name.
        """
        if name not in self._entries:
            raise CondistillError(f"there is no {self.kind} {name!r}{nearest(name, list(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@lru_cache(maxsize=1)
def load_plugins() -> tuple[str, ...]:
    """Import every installed plugin once, and return their names.

    Raises:
        CondistillError: a plugin cannot be imported.
    """
    found = metadata.entry_points(group=PLUGINS)
    for entry_point in found:
        try:
            entry_point.load()
        except Exception as error:  # a plugin can raise any exception, and the message must name the plugin
            raise CondistillError(
                f"the plugin {entry_point.name} ({entry_point.value}) cannot be imported: {error}"
            ) from error
    return tuple(entry_point.name for entry_point in found)
