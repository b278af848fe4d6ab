"""Tests of imports: they point down the list of packages in docs/architecture.md, and form no cycle."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from parsed import nodes_of

SRC = Path(__file__).parents[1] / "src" / "condistill"
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
LAYERS = re.findall(r"^\| `(\w+)` \|", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
"""The packages in the order of the page, from top to bottom: a package imports only packages below it."""


def imported(file: Path) -> set[str]:
    """Return the modules of condistill that a file imports, also under TYPE_CHECKING and in functions."""
    found: set[str] = set()
    for node in nodes_of(file):
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
    """Return a line `file imports module` for each import that points up the list."""
    wrong = []
    for file in sorted(SRC.rglob("*.py")):
        relative = file.relative_to(SRC)
        file_layer = layer(relative.with_suffix("").as_posix().replace("/", "."))
        if file_layer is None:  # __init__ and __main__ are above all packages
            continue
        for module in sorted(imported(file)):
            module_layer = layer(module)
            if module_layer is not None and LAYERS.index(module_layer) < LAYERS.index(file_layer):
                wrong.append(f"{relative} imports {module}")
    return wrong


def modules() -> dict[str, Path]:
    """Return the file of each module of the package, by dotted name."""
    named = {}
    for file in SRC.rglob("*.py"):
        parts = file.relative_to(SRC).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {name: file for name, file in named.items() if name}


def import_cycle() -> list[str]:
    """Return the modules of one import cycle, or an empty list."""
    files = modules()
    edges = {name: {m for m in imported(file) if m in files and m != name} for name, file in files.items()}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for following in sorted(edges[name]):
            if found := visit(following, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(files) if (found := visit(name, []))), [])


def test_the_page_lists_every_package() -> None:
    packages = {path.parent.name for path in SRC.glob("*/__init__.py")}
    assert sorted(LAYERS) == sorted(packages | {"errors"})


def test_the_page_follows_a_latent_through_names_that_exist() -> None:
    steps = re.findall(r"^\| \d\. .* \| `([\w/]+\.py)`, `(\w+)", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(steps) == 8
    for file, name in steps:
        nodes = nodes_of(SRC / file)
        assert name in {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}, (file, name)


def test_imports_point_down_the_layout() -> None:
    wrong = upward_imports()
    assert not wrong, "imports that point up:\n" + "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    cycle = import_cycle()
    assert not cycle, " -> ".join(cycle)


def test_the_method_imports_only_torch() -> None:
    nodes = nodes_of(SRC / "distill" / "random_conditioning.py")
    standard = {"__future__", "collections.abc", "dataclasses", "typing"}
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names - standard} == {"torch"}


def test_the_package_directory_contains_four_files() -> None:
    assert {file.name for file in SRC.iterdir() if file.is_file()} == {
        "__init__.py",
        "__main__.py",
        "errors.py",
        "py.typed",
    }
