from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.mapped import Order
from condistill.evaluate.measure import Measured, Measurement, Scores, Subject
from condistill.evaluate.metrics.frechet import Moments, frechet_distance
from condistill.evaluate.metrics.metric import LATENTS as LATENT_FEATURES
from condistill.evaluate.metrics.metric import METRICS, Metric, Samples, Score
from condistill.evaluate.reference_sets import TeacherSets
from condistill.evaluate.rounds import Round

SPLITS = {"seen": slice(0, 2), "unseen": slice(2, 6), "all": slice(0, 6)}
ROUNDS = [Round(seed, [f"prompt {i}" for i in range(6)], SPLITS) for seed in (7, 8)]


TRUE_FEATURES = [np.random.Generator(np.random.Philox(r.seed)).normal(size=(6, 2)) for r in ROUNDS]


def classify(latents: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return features of images that are filled with the first number of their latents."""
    first = latents[:, 0, 0, 0].astype(np.uint8).astype(np.float64)
    return {"shape": first > 150, "all_correct": first > 100, "classifier_features": np.stack([first, first**2], 1)}


def random_latents() -> dict[str, list[NDArray[np.float32]]]:
    rng = np.random.Generator(np.random.Philox(1))
    return {
        name: [rng.uniform(0, 255, (6, 4, 2, 2)).astype(np.float32) for _ in ROUNDS] for name in ("teacher", "student")
    }


LATENTS = random_latents()


def subject(name: str, latents: Sequence[NDArray[np.float32]], rounds: Sequence[Round] = ROUNDS) -> Subject:
    """Return a model with the features of its images in the order of mapped arrays."""
    order, features = Order(rounds), [classify(each) for each in latents]
    mapped = {key: np.empty((order.count, *array.shape[1:]), array.dtype) for key, array in features[0].items()}
    for number, each in enumerate(rounds):
        for place, inside in order.places(number, range(len(each.prompts))):
            for key, array in mapped.items():
                array[place] = features[number][key][inside]
    return Subject(name, lambda number, rows: latents[number][rows.start : rows.stop], mapped)


def measured(latents: dict[str, list[NDArray[np.float32]]] | None = None) -> dict[str, Scores]:
    measurement = Measurement(ROUNDS, true_features=TRUE_FEATURES)
    subjects = {name: subject(name, each) for name, each in (latents or LATENTS).items()}
    teacher = subjects["teacher"]
    return {
        name: measurement.measure(each, None if name == "teacher" else teacher).scores
        for name, each in subjects.items()
    }


def test_the_distance_to_the_teacher_is_the_mean_over_images_with_its_spread_over_seeds() -> None:
    scores = measured()
    for split, rows in SPLITS.items():
        means = []
        for student, teacher in zip(LATENTS["student"], LATENTS["teacher"], strict=True):
            errors = (student[rows].astype(float) - teacher[rows]).reshape(-1, 16)
            means.append(np.mean([np.sqrt((error**2).sum() / 16) for error in errors]))
        score = scores["student"][split]["latent_rmse"]
        assert score.value == pytest.approx(np.mean(means))
        assert score.spread == pytest.approx(np.std(means, ddof=1))
        assert "latent_rmse" not in scores["teacher"][split]


def test_correct_attributes_are_shares_of_images() -> None:
    scores = measured()
    first = [latents[:, 0, 0, 0].astype(np.uint8) for latents in LATENTS["student"]]
    for name, threshold in (("all_correct", 100), ("shape", 150)):
        expected = np.mean([(values[2:] > threshold).mean() for values in first])
        assert scores["student"]["unseen"][name].value == pytest.approx(expected)
    assert "colour" not in scores["student"]["unseen"]  # this classifier does not know it


def test_the_frechet_distance_is_over_the_images_of_all_seeds_of_a_split() -> None:
    scores = measured()
    for split, rows in SPLITS.items():
        generated, true = Moments(), Moments()
        for number in range(2):
            generated.update(classify(LATENTS["student"][number])["classifier_features"][rows])
            true.update(TRUE_FEATURES[number][rows])
        expected = frechet_distance(generated, true)
        assert scores["student"][split]["frechet_classifier"].value == pytest.approx(expected)


def test_scores_do_not_depend_on_how_many_rows_are_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measured()
    for rows in (1, 3):
        monkeypatch.setattr("condistill.evaluate.mapped.ROWS_AT_ONCE", rows)
        for name, splits in measured().items():
            for split, scores in splits.items():
                assert {n: s.value for n, s in scores.items()} == pytest.approx(
                    {n: s.value for n, s in expected[name][split].items()}, rel=1e-9
                )


def test_models_of_other_latents_have_no_distance_of_latents() -> None:
    measurement = Measurement(ROUNDS)
    teacher = subject("teacher", LATENTS["teacher"])
    larger = subject("larger", [np.zeros((6, 4, 4, 4), np.float32)] * 2)
    elsewhere = replace(subject("elsewhere", LATENTS["student"]), latent_space="another autoencoder")
    for model in (larger, elsewhere):
        assert "latent_rmse" not in measurement.measure(model, teacher).scores["all"]


def test_without_features_only_latents_are_measured_and_one_seed_has_no_spread() -> None:
    def constant(value: float) -> Subject:
        return Subject("model", lambda _, rows: np.full((len(rows), 4, 2, 2), value, np.float32))

    measurement = Measurement(ROUNDS[:1])
    assert measurement.measure(constant(1)).scores == {split: {} for split in SPLITS}
    scores = measurement.measure(constant(4), constant(1)).scores
    for split in SPLITS:
        assert list(scores[split]) == ["latent_rmse"]
        assert scores[split]["latent_rmse"].value == 3.0
        assert scores[split]["latent_rmse"].spread is None


def test_a_result_that_is_not_finite_is_left_out() -> None:
    latents = {name: [array.copy() for array in arrays] for name, arrays in LATENTS.items()}
    latents["student"][0][3] = np.nan
    teacher = Subject("teacher", lambda number, rows: latents["teacher"][number][rows.start : rows.stop])
    student = Subject("student", lambda number, rows: latents["student"][number][rows.start : rows.stop])
    scores = Measurement(ROUNDS).measure(student, teacher).scores
    assert list(scores["seen"]) == ["latent_rmse"]
    assert scores["unseen"] == scores["all"] == {}


class Undefined(Metric):
    name = "undefined"
    needs = (LATENT_FEATURES,)

    def update(self, samples: Samples) -> None:
        pass

    def merge(self, other: Metric) -> None:
        pass

    def compute(self) -> Score | None:
        return Score(value=math.nan)


def test_a_metric_of_a_plugin_that_is_not_a_number_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", {"undefined": Undefined})
    with pytest.raises(CondistillError, match=r"the metric 'undefined' of teacher is not a finite number"):
        measured()


class ToReference(Undefined):
    name = "to_reference"
    needs = ("classifier_features",)
    reference = "features"

    def merge(self, other: Metric) -> None:
        assert self.context.reference is not other.context.reference

    def compute(self) -> Score | None:
        return Score(value=float(self.context.reference["classifier_features"].moments.count))

    def values(self) -> dict[tuple[int, int], float]:
        return {(7, 0): 2.0}


def test_a_metric_has_the_teachers_images_of_its_split_as_the_reference_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", {"to_reference": ToReference})
    teacher = subject("teacher", LATENTS["teacher"])
    measurement = Measurement(ROUNDS)
    sets = TeacherSets(measurement.order, ROUNDS, teacher.features)
    found: Measured = measurement.measure(subject("student", LATENTS["student"]), teacher, reference=sets)
    assert {split: scores["to_reference"].value for split, scores in found.scores.items()} == {
        "seen": 4.0,
        "unseen": 8.0,
        "all": 12.0,
    }
    assert found.values == {"to_reference": {(7, 0): 2.0}}
    features = [classify(each)["classifier_features"] for each in LATENTS["teacher"]]
    expected = np.concatenate([each[2:] for each in features])
    assert sets["seen"]["classifier_features"].prompts == ["prompt 0", "prompt 1"] * 2
    moments = sets["unseen"]["classifier_features"].moments
    np.testing.assert_allclose(moments.mean, expected.mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(expected.T))
    assert measurement.measure(teacher).scores["all"] == {}  # the teacher has no score against itself
