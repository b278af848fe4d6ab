"""Printing for the user. Text is printed as it is: without markup, and with control characters made visible."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from condistill.utils.text import printable


def print_line(console: Console, text: str, *, style: str = "", end: str = "\n") -> None:
    """Print text without markup, and not wrapped, so that paths can be copied."""
    console.print(printable(text), style=style, end=end, markup=False, highlight=False, soft_wrap=True)


def cell(text: str) -> str:
    """Return text as the markup of a table's cell or of a tree's label, which shows it as it is."""
    return escape(printable(text))
