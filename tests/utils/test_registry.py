from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

from condistill.errors import CondistillError
from condistill.utils import registry
from condistill.utils.registry import Registry, load_plugins


def test_entries_are_found_by_name_and_listed_in_the_order_of_registration() -> None:
    numbers = Registry("number", {"one": 1})
    assert numbers.register("two", 2) == 2
    assert list(numbers) == ["one", "two"]
    assert numbers["two"] == 2
    assert "three" not in numbers


def test_an_error_about_an_unknown_name_suggests_the_closest_one() -> None:
    with pytest.raises(CondistillError, match=r"there is no number 'tow'; did you mean 'two'\?"):
        Registry("number", {"one": 1, "two": 2})["tow"]


def test_a_name_can_be_registered_only_once() -> None:
    numbers = Registry("number", {"one": 1000})
    numbers.register("one", numbers["one"])
    with pytest.raises(CondistillError, match="'one' is registered already; choose another name"):
        numbers.register("one", 2)


class _EntryPoint:
    name, value = "toy", "toy_package.plugin"

    def __init__(self, load: Any) -> None:
        self.load = load


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that installs a plugin; its argument is called when the plugin is imported."""

    def install(load: Any) -> None:
        points = [_EntryPoint(load)]
        monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == registry.PLUGINS else [])

    load_plugins.cache_clear()
    yield install
    load_plugins.cache_clear()


def test_an_installed_plugin_is_imported_once(installed: Any) -> None:
    loaded: list[int] = []
    installed(lambda: loaded.append(1))
    assert load_plugins() == load_plugins() == ("toy",)
    assert loaded == [1]


def test_an_error_about_a_plugin_names_it(installed: Any) -> None:
    def fail() -> None:
        raise ImportError("no module named 'x'")

    installed(fail)
    with pytest.raises(CondistillError, match=r"the plugin toy \(toy_package.plugin\) cannot be imported: no module"):
        load_plugins()
