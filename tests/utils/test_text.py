from __future__ import annotations

import pytest

from condistill.utils.text import first_line, printable, shorten


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\x00", r"\x00"),
        ("\x07", r"\x07"),
        ("\r", r"\r"),
        ("\x1b", r"\x1b"),
        ("\x7f", r"\x7f"),
        ("\x9b", r"\x9b"),
        ("\u2028", r"\u2028"),
        ("\u202e", r"\u202e"),
        ("\u2066", r"\u2066"),
        ("\udcff", r"\udcff"),
    ],
)
def test_characters_that_command_a_terminal_or_reverse_text_are_shown_as_escapes(character: str, shown: str) -> None:
    assert printable(f"a{character}b") == f"a{shown}b"


def test_all_other_text_stays_as_it_is() -> None:
    text = "two lines\n\tof café, 星, שלום, 🦊 and [brackets]\\"
    assert printable(text) == text


def test_long_text_loses_its_middle() -> None:
    assert shorten("x" * 100) == "x" * 100
    short = shorten("a" * 200 + "b" * 200, 21)
    assert short == "aaaaaaaaa...bbbbbbbbb"


@pytest.mark.parametrize(
    ("message", "line"), [("", "ValueError"), ("\n  a file\nis gone", "a file"), (" \n", "ValueError")]
)
def test_the_first_line_of_an_exception_shows_something(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
