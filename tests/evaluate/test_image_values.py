from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluated import toy_rounds

from condistill.evaluate.image_values import IMAGES_NAME, ImageValues

ROUNDS = toy_rounds(12)
KEYS = [(seed, number) for seed in (7, 8) for number in range(12)]
RMSE = {
    name: {key: base + 0.1 * key[1] + 0.01 * ((key[1] * step) % 5) for key in KEYS}
    for name, base, step in (("small", 2.0, 2), ("tiny", 3.0, 3))
}
VALUES = ImageValues(ROUNDS, {"teacher": {}, **{name: {"latent_rmse": values} for name, values in RMSE.items()}})


def test_every_two_students_are_compared_on_every_split() -> None:
    found = {comparison.split: comparison for comparison in VALUES.comparisons()}
    assert list(found) == ["seen", "unseen", "all"]
    for split, rows in (("seen", range(8)), ("unseen", range(8, 12)), ("all", range(12))):
        comparison = found[split]
        assert (comparison.metric, comparison.one, comparison.other) == ("latent_rmse", "small", "tiny")
        expected = np.mean([RMSE["small"][key] - RMSE["tiny"][key] for key in KEYS if key[1] in rows])
        assert comparison.difference == pytest.approx(expected)
        assert comparison.low <= comparison.difference <= comparison.high
        assert comparison.separates
        assert comparison.images == 2 * len(rows)


def test_students_are_compared_with_a_teacher_that_has_values() -> None:
    values = dict.fromkeys(KEYS, 1.0)
    both = ImageValues(ROUNDS, {"teacher": {"all_correct": values}, "small": {"all_correct": {**values, (7, 0): 0.0}}})
    (seen, unseen, whole) = both.comparisons()
    assert (seen.one, seen.other, seen.difference) == ("small", "teacher", pytest.approx(-1 / 16))
    assert unseen.difference == 0
    assert whole.difference == pytest.approx(-1 / 24)


def test_groups_have_the_mean_of_their_images() -> None:
    groups = {"concept": {"first": {(7, 0), (8, 0), (7, 1)}, "none": {(9, 0)}}}
    scores = VALUES.groups(groups)
    assert list(scores["concept"]) == ["first"]
    score = scores["concept"]["first"]["small"]["latent_rmse"]
    values = RMSE["small"]
    assert score.value == pytest.approx(np.mean([np.mean([values[7, 0], values[7, 1]]), values[8, 0]]))


def test_the_table_has_a_row_for_every_image_and_model(tmp_path: Path) -> None:
    VALUES.write(tmp_path / IMAGES_NAME)
    table = pq.read_table(tmp_path / IMAGES_NAME)
    assert table.column_names == ["model", "seed", "number", "split", "prompt", "latent_rmse"]
    rows = table.to_pylist()
    assert len(rows) == 3 * 24
    assert [row["latent_rmse"] for row in rows[:24]] == [None] * 24
    last = rows[-1]
    assert last == {
        "model": "tiny",
        "seed": 8,
        "number": 11,
        "split": "unseen",
        "prompt": ROUNDS[1].prompts[11],
        "latent_rmse": RMSE["tiny"][8, 11],
    }


def test_a_share_of_a_group_is_not_certain_where_every_image_is_correct() -> None:
    values = ImageValues(ROUNDS, {"teacher": {"all_correct": dict.fromkeys(KEYS, 1.0)}})
    score = values.groups({"concept": {"all": set(KEYS)}})["concept"]["all"]["teacher"]["all_correct"]
    assert score.low is not None
    assert (score.value, score.high) == (1.0, 1.0)
    assert 0.7 < score.low < 0.9
