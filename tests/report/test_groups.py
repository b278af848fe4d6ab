from __future__ import annotations

from evaluations import build_evaluation

from condistill.evaluate.metrics import Score
from condistill.report.groups import group_tables

SCORES = {"teacher": {"all": {"all_correct": 0.9}}, "small": {"all": {"all_correct": 0.5}}}


def shares(teacher: float, small: float) -> dict[str, dict[str, Score]]:
    return {
        "teacher": {"all_correct": Score(value=teacher)},
        "small": {"all_correct": Score(value=small, low=small - 0.1, high=small + 0.1)},
    }


def test_groups_are_ordered_by_the_gap_to_the_teacher() -> None:
    groups = {"concept": {"ring": shares(0.9, 0.8), "star": shares(1.0, 0.3), "heart": shares(0.5, 0.5)}}
    (found,) = group_tables(build_evaluation(SCORES, groups=groups))
    assert found.title == "Per concept"
    assert found.lead == "Correct of each concept, the largest gap to the teacher first."
    rows = found.table[0].rows
    assert [row.label for row in rows] == ["star", "ring", "heart"]
    assert [(cell.text, cell.note) for cell in rows[0].cells] == [("100 %", ""), ("30 %", "20.0 to 40.0")]


def test_many_groups_are_cut_and_the_page_says_so() -> None:
    groups = {"source": {f"file {number}": shares(0.9, 0.5) for number in range(50)}}
    (found,) = group_tables(build_evaluation(SCORES, groups=groups))
    assert len(found.table[0].rows) == 40
    assert found.lead.endswith("40 of 50 are shown; metrics.json has all.")


def test_groups_without_a_known_metric_have_no_table() -> None:
    assert group_tables(build_evaluation(SCORES)) == []
    assert group_tables(build_evaluation(SCORES, groups={"concept": {"ring": {"small": {}}}})) == []
