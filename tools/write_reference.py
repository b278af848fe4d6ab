"""Write docs/reference.md from the docstrings of the public names.

Run as `python tools/write_reference.py`. A test compares the page with the docstrings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from pydantic import BaseModel

import condistill

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
_HEAD = """# Reference

Every public name, from `import condistill`. This page is made from the docstrings by `python tools/write_reference.py`.
"""


def _signature(name: str, thing: Any) -> str:
    """Return the call of a function or class as Python writes it, one argument per line if it is long."""
    signature = inspect.signature(thing)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    signature = signature.replace(parameters=parameters)
    if inspect.isclass(thing):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    text = _unquoted(f"{name}{signature}")
    if len(text) <= 100:
        return text
    words = [_unquoted(str(p)) for p in parameters]
    first_keyword_only = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if first_keyword_only is not None:
        words.insert(first_keyword_only, "*")
    returns = signature.return_annotation
    arrow = "" if returns is inspect.Signature.empty else f" -> {returns}"
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){arrow}"


def _unquoted(signature: str) -> str:
    """Return a signature whose annotations, which are strings here, have no quotes."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)


def _text(thing: Any) -> str:
    """Return a docstring as Markdown: sections become lists, examples become code blocks."""
    text = inspect.getdoc(thing) or ""
    text = re.sub(r"::\n\n((?:    .*\n?)+)", lambda match: f":\n\n```text\n{dedent(match[1]).rstrip()}\n```\n", text)
    lines: list[str] = []
    for line in text.splitlines():
        section = line.strip().removesuffix(":")
        if line == f"{section}:" and section in ("Args", "Returns", "Raises"):
            lines += [f"**{section}**", ""]
        elif named := re.match(r"    (\w+): (.*)", line):
            lines.append(f"- `{named[1]}`: {named[2]}")
        else:
            lines.append(line.removeprefix("    "))
    return "\n".join(lines)


def _methods(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield the documented public methods and properties that a class defines itself."""
    for name, member in vars(thing).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, getattr(thing, name)


def reference() -> str:
    """Return the page."""
    parts = [_HEAD]
    for name in condistill.__all__:
        thing = getattr(condistill, name)
        parts.append(f"## {name}\n\n")
        if not (inspect.isclass(thing) and issubclass(thing, Exception | BaseModel)):
            parts[-1] += f"```text\n{_signature(name, thing)}\n```\n\n"
        parts[-1] += f"{_text(thing)}\n"
        for method, function in _methods(thing) if inspect.isclass(thing) else ():
            parts.append(f"### {name}.{method}\n\n```text\n{_signature(method, function)}\n```\n\n{_text(function)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE.name}")  # noqa: T201 - a script
