from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pytest
from parsed import nodes_of

from condistill.utils.format import byte_size, duration, percent, quantity, si_quantity, significant


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "0.999 KiB"),
        (7_516_193, "7.17 MiB"),
        (1023.9 * 2**20, "1.00 GiB"),
        (2.06 * 2**30, "2.06 GiB"),
        (80 * 2**30, "80.0 GiB"),
        (3000 * 2**40, "3,000 TiB"),
    ],
)
def test_bytes_are_written_in_units_of_1024(count: float, text: str) -> None:
    assert byte_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.21e-5, "32.1 µs"),
        (0.0123, "12.3 ms"),
        (0.9999, "1.00 s"),
        (50.37, "50.4 s"),
        (119, "119 s"),
        (130, "2.17 min"),
        (7300, "2.03 h"),
        (40 * 3600, "40.0 h"),
        (652_018.1 * 3600, "27,200 days"),
    ],
)
def test_times_are_written_in_a_unit_of_their_size(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_digits_of_a_time_can_be_chosen() -> None:
    assert [duration(seconds, 2) for seconds in (0.054, 100, 130)] == ["54 ms", "100 s", "2.2 min"]


@pytest.mark.parametrize("exponent", range(-8, 16))
def test_no_number_is_written_with_an_exponent(exponent: int) -> None:
    for number in (1.234 * 10.0**exponent, 9.996 * 10.0**exponent):
        for text in (significant(number), duration(number), byte_size(number), quantity(number), percent(number)):
            assert "e" not in text.lower().replace("tib", "").replace(" days", ""), text


def test_a_number_that_is_rounded_up_has_no_further_digit() -> None:
    assert [significant(number) for number in (9.996, 0.09996, 999.6, 99.96)] == ["10.0", "0.100", "1,000", "100"]
    assert significant(math.nan) == "nan"


def test_a_small_share_is_not_written_as_nothing() -> None:
    assert [percent(share) for share in (0, 0.004, 0.674, 12.5)] == ["0 %", "0.4 %", "67 %", "1,250 %"]
    assert percent(0.2744, 1) == "27.4 %"


def test_quantities_have_a_unit_of_thousands() -> None:
    assert [quantity(number) for number in (0, 999, 6_978_372, 2_600_000_000)] == ["0", "999", "6.98 M", "2.60 B"]
    assert si_quantity(123e9) == "123 G"


SRC = Path(__file__).parents[2] / "src" / "condistill"
OTHERS = {"evaluate/metrics/metric.py", "studio/chart.py"}
"""A metric's own notation; coordinates in an SVG."""


def formatted_elsewhere(file: Path) -> list[str]:
    """Return the places of a file that round a number to digits, or name a unit of bytes, in a text."""
    found = []
    for node in nodes_of(file):
        if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "" for part in node.format_spec.values]
            if re.search(r"[.%fe]", "".join(map(str, parts))):
                found.append(f"{file.relative_to(SRC)}:{node.lineno} {ast.unparse(node)}")
        if isinstance(node, ast.JoinedStr):
            texts = [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
            if any(re.search(r"^ ?[kKMGT]i?B\b(?!/s)", text) for text in texts):
                found.append(f"{file.relative_to(SRC)}:{node.lineno} a unit of bytes")
    return found


def test_numbers_are_rounded_and_bytes_are_written_in_one_place() -> None:
    files = [file for file in SRC.rglob("*.py") if file.name != "format.py"]
    assert [place for file in files for place in formatted_elsewhere(file) if place.split(":")[0] not in OTHERS] == []
