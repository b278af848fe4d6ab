"""Imports point down the list of packages in docs/architecture.md, and never in a circle."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "condistill"
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
LAYERS = re.findall(r"^\| `(\w+)` \|", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
"""The packages in the order of the page, highest first: a package imports what stands below it."""


def imported(file: Path) -> set[str]:
    """Modules of condistill that a file imports anywhere in it, under TYPE_CHECKING and in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in inner if _is_module(name)}
            found |= submodules or inner | {node.module}
    return {name.removeprefix("condistill.") for name in found if name.startswith("condistill.")}


def _is_module(name: str) -> bool:
    path = SRC.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def layer(module: str) -> str | None:
    head = module.split(".", 1)[0]
    return head if head in LAYERS else None


def upward_imports() -> list[str]:
    """`file imports package` for every import that points up the list."""
    wrong = []
    for file in sorted(SRC.rglob("*.py")):
        relative = file.relative_to(SRC)
        mine = layer(relative.with_suffix("").as_posix().replace("/", "."))
        if mine is None:  # __init__ and __main__, which stand above everything
            continue
        for module in sorted(imported(file)):
            theirs = layer(module)
            if theirs is not None and LAYERS.index(theirs) < LAYERS.index(mine):
                wrong.append(f"{relative} imports {module}")
    return wrong


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    named = {}
    for file in SRC.rglob("*.py"):
        parts = file.relative_to(SRC).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {name: file for name, file in named.items() if name}


def circle() -> list[str]:
    """The modules of one circle of imports; empty where there is none."""
    files = modules()
    arrows = {name: {m for m in imported(file) if m in files and m != name} for name, file in files.items()}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for following in sorted(arrows[name]):
            if found := visit(following, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(files) if (found := visit(name, []))), [])


def test_the_page_lists_every_package() -> None:
    packages = {path.parent.name for path in SRC.glob("*/__init__.py")}
    assert sorted(LAYERS) == sorted(packages | {"errors"})


def test_imports_point_down_the_layout() -> None:
    wrong = upward_imports()
    assert not wrong, "imports that point up:\n" + "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    assert not circle(), " -> ".join(circle())


def test_the_idea_imports_torch_alone() -> None:
    tree = ast.parse((SRC / "distill" / "random_conditioning.py").read_text(encoding="utf-8"))
    standard = {"__future__", "collections.abc", "dataclasses", "typing"}
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names - standard} == {"torch"}


def test_four_files_lie_directly_under_the_package() -> None:
    assert {file.name for file in SRC.iterdir() if file.is_file()} == {
        "__init__.py",
        "__main__.py",
        "errors.py",
        "py.typed",
    }
