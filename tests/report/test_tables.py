from __future__ import annotations

from evaluations import build_evaluation, build_model

from condistill.evaluate.metrics import Score
from condistill.evaluate.record import Evaluation, NetworkRecord, ReferenceImagesRecord
from condistill.report.tables import card_scores, costs, scores

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
    assert [cell.note for cell in rows["Time per image"].cells][::2] == ["median 210 ms", "3.70× as fast, median 57 ms"]
    assert [cell.text for cell in rows["Weights on disk"].cells] == ["25.7 MiB", "6.95 MiB", "6.95 MiB"]
    assert [cell.text for cell in rows["Peak memory"].cells][::2] == ["7.15 MiB", "1.93 MiB"]
    assert [cell.text for cell in rows["Time to train"].cells] == ["–", "12 s", "12 s"]
    assert "Denoiser evaluations per image" in rows


def best(evaluation: Evaluation) -> dict[str, list[str]]:
    """Return the students that are marked as the best, by row."""
    rows = [row for group in [*scores(evaluation), *costs(evaluation)] for row in group.rows]
    names = list(evaluation.models)
    return {row.label: [name for name, cell in zip(names, row.cells, strict=True) if cell.best] for row in rows}


def with_times(**times: tuple[float, float]) -> Evaluation:
    """Return an evaluation of students of different sizes, with shortest and median times of an image."""
    evaluation, models = build_evaluation({name: {} for name in times}), {}
    for number, (name, model) in enumerate(evaluation.models.items()):
        shortest, median = times.get(name, (9.0, 9.0))
        speed = model.speed.model_copy(update={"sec_per_image": shortest, "median_sec_per_image": median})
        size = model.size.model_copy(update={"macs": 1000 + number})
        models[name] = model.model_copy(update={"size": size, "speed": speed})
    return evaluation.model_copy(update={"models": models})


def test_the_fastest_student_is_marked_only_if_the_difference_is_above_the_spread() -> None:
    row = "Time per image"
    assert best(with_times(a=(0.80, 0.81), b=(1.15, 1.16)))[row] == ["a"]
    assert best(with_times(a=(0.80, 0.81), b=(1.15, 1.60)))[row] == []
    assert best(with_times(a=(0.80, 1.20), b=(1.15, 1.16)))[row] == []
    assert best(with_times(a=(0.80, 0.81), b=(0.83, 0.84)))[row] == []  # the least difference that counts is 5 %
    assert best(with_times(a=(0.80, 0.81), b=(0.81, 0.82), c=(2.0, 2.1)))[row] == ["a", "b"]


def test_equal_networks_are_never_ranked_by_their_cost() -> None:
    evaluation = with_times(a=(0.80, 0.81), b=(1.15, 1.16))
    size = evaluation.models["a"].size
    equal = {name: model.model_copy(update={"size": size}) for name, model in evaluation.models.items()}
    marked = best(evaluation.model_copy(update={"models": equal}))
    assert not any(marked[row] for row in ("Time per image", "Peak memory", "MACs per step", "Weights on disk"))


def test_the_time_to_train_is_never_ranked() -> None:
    evaluation = build_evaluation({"a": {}, "b": {}})
    slow = evaluation.models["b"].model_copy(update={"compute": build_model({}, train_sec=9999.0).compute})
    evaluation = evaluation.model_copy(update={"models": {**evaluation.models, "b": slow}})
    (row,) = [row for row in costs(evaluation)[0].rows if row.label == "Time to train"]
    assert [cell.text for cell in row.cells] == ["–", "12 s", "2.8 h"]
    assert row.higher is None
    assert not any(cell.best for cell in row.cells)


def test_scores_that_differ_by_less_than_their_error_are_equally_good() -> None:
    for shares, marked in (((0.5, 0.56, 0.9), ["c"]), ((0.5, 0.8, 0.82), ["b", "c"]), ((0.8, 0.81, 0.82), [])):
        models = {name: {"all": {"all_correct": share}} for name, share in zip("abc", shares, strict=True)}
        assert best(build_evaluation(models))["Correct"] == marked


def test_a_student_that_takes_as_long_as_its_teacher_is_not_called_faster() -> None:
    notes = []
    for median in (8.1, 9.5):
        (row,) = [row for row in costs(with_times(a=(8.0, median)))[0].rows if row.label == "Time per image"]
        notes.append(row.cells[1].note)
    assert notes == ["3.70× as fast, median 8.1 s", "as fast, median 9.5 s"]  # the teacher takes 9 s


def test_a_card_compares_a_student_with_its_teacher_and_the_baseline() -> None:
    table = card_scores(build_evaluation(SCORES), "small")
    assert table.columns == ("teacher", "plain distillation", "this student")
    assert [(row.label, row.cells) for row in table.rows] == [
        ("Correct, unseen prompts", ("88 %", "23 %", "67 % ± 2.0")),
        ("Latent RMSE, unseen prompts", ("–", "0.700", "0.420")),
    ]
    assert table.notes == (
        "Miniature figures, from a small classifier of rendered scenes: not FID on MS-COCO.",
        "Correct: images with every attribute of the prompt correct.",
        "Latent RMSE: distance to the teacher's latents from the same noise.",
        "± is the standard deviation over the evaluation seeds.",
        "Measured on 200 images in total.",
    )
    assert card_scores(build_evaluation(SCORES), "plain").columns == ("teacher", "this student")


def test_a_card_has_spread_and_interval_and_says_how_new_metrics_were_measured() -> None:
    fid = Score(value=20.0)
    correct = Score(value=0.67, spread=0.02, low=0.61, high=0.73)
    evaluation = build_evaluation(
        {"small": {"all": {"all_correct": correct, "fid": fid}}},
        networks={"inception": NetworkRecord(source="/home/me/inception.pth", sha256="0" * 64, resize="to 299 px")},
        reference_images=ReferenceImagesRecord(source="/home/me/coco.npz", images=40_504, sha256="1" * 64),
    )
    table = card_scores(evaluation, "small")
    assert {row.label: row.cells[-1] for row in table.rows} == {
        "Correct, all prompts": "67 % ± 2.0 (61.0 to 73.0)",
        "FID, all prompts": "20.0",
    }
    text = " ".join(table.notes)
    assert "FID compares whole sets of images and can mislead alone; not measured: precision and recall." in text
    assert "In brackets: the 95 % interval over the prompts." in text
    assert "Networks: inception inception.pth (to 299 px)." in text
    assert "Sets of images are compared with coco.npz, 40,504 images." in text
    assert "/home" not in text
