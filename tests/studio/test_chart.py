from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

from condistill.studio.chart import loss_chart, thinned


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'points="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())] for points in found]


def test_a_loss_that_falls_is_a_line_that_falls_and_the_text_says_it() -> None:
    chart = loss_chart({"student": [(10, 1.0), (20, 0.5), (30, 0.25)]})
    ET.fromstring(chart)
    ((first, second, third),) = polylines(chart)
    assert first[0] < second[0] < third[0]
    assert first[1] < second[1] < third[1]
    assert "student from 1.00 at step 10 to 0.250 at step 30" in chart
    assert "logarithmic" not in chart


def test_losses_of_several_powers_of_ten_have_a_logarithmic_axis() -> None:
    chart = loss_chart({"student": [(1, 100.0), (2, 10.0), (3, 1.0)]})
    (points,) = polylines(chart)
    assert "logarithmic" in chart
    assert points[1][1] - points[0][1] == points[2][1] - points[1][1]


def test_the_chart_has_room_for_the_steps_that_are_left() -> None:
    (points,) = polylines(loss_chart({"student": [(0, 1.0), (50, 0.5)]}, steps=100))
    (whole,) = polylines(loss_chart({"student": [(0, 1.0), (50, 0.5)]}))
    assert points[1][0] - points[0][0] == (whole[1][0] - whole[0][0]) / 2


def test_what_is_no_number_is_left_out_and_a_flat_loss_is_a_flat_line() -> None:
    assert loss_chart({}) == loss_chart({"a": [(1, math.nan)], "b": []}) == ""
    (points,) = polylines(loss_chart({"a": [(1, 0.0), (2, math.inf), (3, 0.0)]}))
    assert len(points) == 2
    assert points[0][1] == points[1][1]


def test_the_name_of_a_student_is_text() -> None:
    ET.fromstring(loss_chart({"<script>\x1b[31m": [(1, 1.0)]}))


def test_a_long_history_is_thinned_to_means_and_keeps_its_end() -> None:
    curve = [(step, float(step % 2)) for step in range(100_001)]
    thin = thinned(curve)
    assert len(thin) <= 300
    assert thin[-1] == curve[-1]
    assert all(abs(loss - 0.5) < 0.01 for _, loss in thin[:-1])
