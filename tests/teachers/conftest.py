"""Tiny teachers, built once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from condistill.teachers.family import Family
from condistill.teachers.registry import FAMILIES

pytest.register_assert_rewrite("contract")


@pytest.fixture(scope="session")
def tiny_teacher(one_thread: None) -> Callable[[str], Family]:
    """Return the tiny teacher of a family. It is shared, so do not change it."""
    from tiny import TINY

    @cache
    def teacher(name: str) -> Family:
        tiny = TINY[name]
        return FAMILIES[name](tiny.build(), resolution=tiny.resolution)

    return teacher
