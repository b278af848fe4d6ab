from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from condistill.errors import CondistillError, CorruptError
from condistill.utils.record import Record, RecordFile


class Point(Record):
    x: float
    note: str | None = None


class Points(RecordFile):
    format: Literal[3] = 3
    points: tuple[Point, ...]


POINTS = Points(points=(Point(x=1.5), Point(x=2.0, note="π")))


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    POINTS.write(file)
    assert Points.read(file, remedy="") == POINTS
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "format": 3,
        "points": [{"x": 1.5}, {"x": 2.0, "note": "π"}],
    }


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"format": 2, "points": []}', CondistillError, "has format 2, .* reads format 3; make it again"),
        ('{"points": []}', CondistillError, "has format 1, .* reads format 3; make it again"),
        ('{"format": 3, "points": [{"x": "1"}]}', CorruptError, r"see points.0.x\); make it again"),
        ('{"format": 3, "points": [], "lines": []}', CorruptError, r"see lines\); make it again"),
        ('{"format": 3,', CorruptError, "is not a JSON object, so it is damaged; make it again"),
        ("[]", CorruptError, "is not a JSON object, so it is damaged; make it again"),
    ],
)
def test_a_file_with_another_format_or_invalid_content_is_refused(
    tmp_path: Path, text: str, error: type[CondistillError], message: str
) -> None:
    file = tmp_path / "points.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        Points.read(file, remedy="make it again")


def test_an_error_about_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"points\.json does not exist; make it"):
        Points.read(tmp_path / "points.json", remedy="make it")


def test_a_record_cannot_be_changed_and_contains_only_finite_numbers() -> None:
    with pytest.raises(ValidationError):
        POINTS.points[0].x = 3.0  # type: ignore[misc]
    for number in (math.nan, math.inf):
        with pytest.raises(ValidationError):
            Point(x=number)
