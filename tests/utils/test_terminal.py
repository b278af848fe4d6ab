from __future__ import annotations

import ast
import io
from pathlib import Path

from parsed import nodes_of
from rich.console import Console
from rich.table import Table

from condistill.utils.progress import progress_bar
from condistill.utils.terminal import cell, print_line

SRC = Path(__file__).parents[2] / "src" / "condistill"
HOSTILE = "\x1b]0;title\x07\x1b[2J[red]name[/]\r\x9b31m\u202etxt\udcff"
SHOWN = r"\x1b]0;title\x07\x1b[2J[red]name[/]\r\x9b31m\u202etxt\udcff"
BOX = {"utils/terminal.py", "cli/export.py", "cli/recipes.py", "cli/doctor.py", "plan/show.py", "workflow/sweep.py"}
"""The files that print something other than a line: a table or a tree, whose parts are made by `cell`."""


def console() -> tuple[Console, io.StringIO]:
    """Return a terminal without colours, and what it received."""
    file = io.StringIO()
    return Console(file=file, force_terminal=True, color_system=None, width=200, legacy_windows=False), file


def test_a_line_shows_hostile_text_as_it_is() -> None:
    terminal, received = console()
    print_line(terminal, HOSTILE)
    assert received.getvalue() == f"{SHOWN}\n"


def test_a_table_shows_hostile_text_as_it_is() -> None:
    terminal, received = console()
    table = Table(cell(HOSTILE))
    table.add_row(cell(HOSTILE))
    terminal.print(table)
    assert received.getvalue().count(SHOWN) == 2
    assert "\x1b" not in received.getvalue()


def test_a_progress_bar_shows_hostile_text_as_it_is() -> None:
    terminal, received = console()
    with progress_bar(terminal, HOSTILE, 2, unit="images") as advance:
        advance(1, note=HOSTILE)
    assert received.getvalue().count(SHOWN) >= 2
    assert not any(text in received.getvalue() for text in ("\x1b]0", "\x1b[2J", "\x07", "\x9b", "\u202e"))


def test_a_line_of_progress_shows_hostile_text_as_it_is() -> None:
    file = io.StringIO()
    with progress_bar(Console(file=file, width=200), HOSTILE, 2, unit="images") as advance:
        advance(2, note=HOSTILE)
    assert file.getvalue().count(SHOWN) == 2


def test_only_a_few_files_print_without_print_line() -> None:
    found = set()
    for file in SRC.rglob("*.py"):
        for node in nodes_of(file):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "print":
                found.add(file.relative_to(SRC).as_posix())
    assert found == BOX
