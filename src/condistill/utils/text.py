"""Text that may hold anything, made safe to print and to show on a page."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than tab and newline, which can command a terminal; line and paragraph separators;
characters that reverse the direction of the text after them; and surrogates, which cannot be encoded."""


def printable(text: str) -> str:
    r"""Return text with every character that could command a terminal, or hide other text, as an escape like `\x1b`.

    Names of files and columns, prompts and the messages of libraries can hold such characters.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that shows something; of an empty message, the class's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def shorten(text: str, length: int = 100) -> str:
    """Return text of at most `length` characters; the middle of a longer one is replaced by `...`."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[: length - 3 - half]}...{text[len(text) - half :]}"
