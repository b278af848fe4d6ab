"""The source files of the package, each of which is read and parsed once for all tests."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def nodes_of(file: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a Python file, in the order of `ast.walk`; the first is the module."""
    return tuple(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
