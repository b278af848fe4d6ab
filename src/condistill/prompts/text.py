"""What a prompt is: visible text without control characters, which two writers may have encoded differently."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARACTERS = 100_000
"""A longer text is no prompt: more likely a file without line ends, or a quote that is never closed."""

_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Characters that Unicode calls default ignorable, as ranges of a regular expression: nothing of them is shown."""
_BLANK = "\u2800\ufffe\uffff"
"""Characters that show nothing although they are neither white space nor ignorable."""

_IGNORABLES = re.compile(f"[{_IGNORABLE}]+")
_VISIBLE = re.compile(rf"[^\s\x00-\x1f\x7f-\x9f{_IGNORABLE}{_BLANK}]")
_REMOVED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]+")
_REPLACED = re.compile("[\x0b\x0c\x1c-\x1f\x85]+")


def clean_prompt(raw: str) -> tuple[str, bool]:
    """Return a prompt without surrounding white space, and whether something else was removed from it.

    Control characters (but tabs and line breaks) and byte order marks are removed; those that stand for white space
    become a space. A text that shows nothing is the empty prompt.
    """
    prompt = raw.strip()
    if prompt.isascii() and prompt.isprintable():
        return prompt, False
    cleaned = _REPLACED.sub(" ", _REMOVED.sub("", prompt)).strip()
    if not _VISIBLE.search(cleaned):
        return "", False
    return cleaned, cleaned != prompt


def remove_ignorable(text: str) -> str:
    """Return a text without the characters of which nothing is shown, such as soft hyphens and zero-width spaces."""
    return _IGNORABLES.sub("", text)


def shown(text: str, limit: int = 80) -> str:
    """Return a text in quotes for a message: on one line, without control characters, and cut after `limit`."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def shown_names(names: Sequence[str], limit: int = 20) -> str:
    """Return names of columns for a message: the plain ones as they are, the others in quotes."""
    plain = [
        name if name.isprintable() and name == name.strip() and 0 < len(name) <= 80 else shown(name) for name in names
    ]
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(plain[:limit]) + more
