from __future__ import annotations

from evaluations import build_evaluation

from condistill.report.tables import card_scores, costs, scores, seconds

SCORES = {
    "teacher": {"unseen": {"all_correct": 0.88}},
    "plain": {"unseen": {"all_correct": 0.23, "latent_rmse": 0.7}},
    "small": {"unseen": {"all_correct": (0.67, 0.02), "latent_rmse": 0.42, "shape": 0.9}},
}


def test_a_score_table_has_one_group_per_split_and_one_row_per_metric() -> None:
    (group,) = scores(build_evaluation(SCORES))
    assert group.title == "Unseen prompts"
    assert [(row.label, row.higher) for row in group.rows] == [("Correct", True), ("Latent RMSE", False)]
    correct, rmse = group.rows
    assert [(cell.text, cell.note, cell.best) for cell in correct.cells] == [
        ("88 %", "", False),
        ("23 %", "", False),
        ("67 %", "± 2.0", True),
    ]
    assert [cell.text for cell in rmse.cells] == ["–", "0.700", "0.420"]


def test_costs_are_shown_with_their_share_of_the_teachers() -> None:
    (group,) = costs(build_evaluation(SCORES))
    rows = {row.label: row for row in group.rows}
    assert [(cell.text, cell.note) for cell in rows["Parameters"].cells][::2] == [("6.98 M", ""), ("1.88 M", "27 %")]
    assert rows["Time per image"].cells[2].note == "3.70× as fast"
    assert [cell.text for cell in rows["Time to train"].cells] == ["–", "12 s", "12 s"]
    assert "Denoiser evaluations per image" in rows


def test_times_are_written_in_a_unit_of_their_size() -> None:
    assert [seconds(value) for value in (0.054, 100, 130, 7300)] == ["0.054 s", "100 s", "2.2 min", "2.0 h"]


def test_a_card_compares_a_student_with_its_teacher_and_the_baseline() -> None:
    table = card_scores(build_evaluation(SCORES), "small")
    assert table.columns == ("teacher", "plain distillation", "this student")
    assert [(row.label, row.cells) for row in table.rows] == [
        ("Correct, unseen prompts", ("88 %", "23 %", "67 %")),
        ("Latent RMSE, unseen prompts", ("–", "0.700", "0.420")),
    ]
    assert table.notes == (
        "Miniature figures, from a small classifier of rendered scenes: not FID on MS-COCO.",
        "Correct: images with every attribute of the prompt correct.",
        "Latent RMSE: distance to the teacher's latents from the same noise.",
        "Measured on 200 images in total.",
    )
    assert card_scores(build_evaluation(SCORES), "plain").columns == ("teacher", "this student")
