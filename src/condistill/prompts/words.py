"""Find held-out words in prompts, however they are written.

A concept that is held out must never be cached, so two spellings that look the same match: letters in any case, in
composed, decomposed or full-width form, with other hyphens and apostrophes, with or without characters that are not
shown. Words are whole words; in scripts that are written without spaces, and in Korean, whose particles are attached to
nouns, a word matches within a run of characters too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from condistill.errors import CondistillError
from condistill.prompts.text import remove_ignorable

_WITHOUT_SPACES = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Tibetan, Myanmar
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # Hangul
    "\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua980-\ua9df\u1b00-\u1b7f"  # Khmer, Tai scripts, Javanese, Balinese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u312f\u31a0-\u31ff"  # radicals, kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff\uff66-\uff9f"  # Han, Yi, half-width kana
    "\U00016fe0-\U00018cff\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # Tangut, more kana and Han
)
"""Scripts in which spaces do not separate words, as ranges of a regular expression."""
_POINTS = re.compile("[\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]")
"""Points of Hebrew and Arabic, which are usually left out."""
_HYPHENS, _APOSTROPHES = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "\u2018\u2019\u02bc\u00b4\uff07"
_ALIKE = str.maketrans({"\u0131": "i", **dict.fromkeys(_HYPHENS, "-"), **dict.fromkeys(_APOSTROPHES, "'")})
_DOTTED_I = "i\u0307"
"""What the capital I with a dot of Turkish becomes in lower case."""


def has_word(prompt: str, words: Sequence[str]) -> bool:
    """Return whether a prompt contains one of several words or phrases.

    Only whole words match, in scripts with spaces; underscores and signs, such as emoji, separate words. Case and the
    form of characters are ignored, and a plural with s or es matches too. The words of a phrase may be separated by
    spaces, hyphens or underscores.

    Raises:
        CondistillError: a word is empty.
    """
    if not words:
        return False
    if prompt.isascii():
        return _pattern(tuple(words), True).search(prompt) is not None
    pattern = _pattern(tuple(words), False)
    return any(pattern.search(form) for form in _forms(prompt))


def find_words(prompt: str, words: Sequence[str]) -> list[str]:
    """Return those of several words or phrases that a prompt contains, in their order; see `has_word`.

    Raises:
        CondistillError: a word is empty.
    """
    if not has_word(prompt, words):
        return []
    forms = [prompt] if prompt.isascii() else [*_forms(prompt)]
    patterns = _patterns(tuple(words), prompt.isascii())
    return [word for word, pattern in zip(words, patterns, strict=True) if any(map(pattern.search, forms))]


def _forms(text: str) -> set[str]:
    """Return a text in its canonical and in its compatible form, both in one case.

    They differ where characters stand for others, such as full-width letters, and where characters are not shown.
    """
    bare = _POINTS.sub("", remove_ignorable(unicodedata.normalize("NFKC", text)))
    return {_fold(unicodedata.normalize("NFC", text)), _fold(bare)}


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFC", text.casefold()).replace(_DOTTED_I, "i")
    return folded.translate(_ALIKE)


@lru_cache(maxsize=16)
def _patterns(words: tuple[str, ...], ascii_only: bool) -> tuple[re.Pattern[str], ...]:
    """Return the pattern of each word; there may be more of them than `_pattern` remembers."""
    return tuple(_pattern((word,), ascii_only) for word in words)


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...], ascii_only: bool) -> re.Pattern[str]:
    """Return a pattern for the forms of prompts, or for ASCII prompts as they are."""
    forms = dict.fromkeys(form for word in words for form in sorted(_checked_forms(word)))
    if ascii_only:
        letter = r"[^\W_]"
        forms = {form: None for form in forms if form.isascii()}
    else:
        letter = rf"(?:(?![{_WITHOUT_SPACES}_])[\w{_marks()}])"
    bodies: dict[tuple[str, str], list[str]] = {}
    for form in forms:
        before = rf"(?<!{letter})" if re.match(letter, form) else ""
        after = rf"(?:s|es)?(?!{letter})" if re.match(letter, form[-1]) else ""
        bodies.setdefault((before, after), []).append(_phrase(form))
    patterns = (f"{before}(?:{'|'.join(each)}){after}" for (before, after), each in bodies.items())
    return re.compile("|".join(patterns) or "(?!)", re.IGNORECASE)


def _checked_forms(word: str) -> set[str]:
    forms = {" ".join(form.split()) for form in _forms(word)}
    if "" in forms:
        raise CondistillError(f"{word!r} is not a word; remove it")
    return forms


def _phrase(text: str) -> str:
    """Return the pattern of a phrase, whose words may be separated in several ways."""
    parts = re.split(r"\s+|(?<=[^\W_])[_-]+(?=[^\W_])", text)
    return r"[\s_-]+".join(map(re.escape, parts))


@cache
def _marks() -> str:
    """Return the combining marks, which belong to the letter before them, as ranges of a regular expression."""
    marks = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)).startswith("M")]
    starts = sorted(set(marks) - {code + 1 for code in marks})
    ends = sorted(set(marks) - {code - 1 for code in marks})
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))
