from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from condistill.errors import CondistillError
from condistill.evaluate.generate import Round
from condistill.evaluate.measure import Measurement, PictureGrid, Scores
from condistill.evaluate.metrics.frechet import Moments, frechet_distance
from condistill.evaluate.metrics.metric import LATENTS as LATENT_FEATURES
from condistill.evaluate.metrics.metric import METRICS, Metric, Samples, Score
from condistill.teachers.family import Family

SPLITS = {"seen": slice(0, 2), "unseen": slice(2, 6), "all": slice(0, 6)}
ROUNDS = [Round(seed, [f"prompt {i}" for i in range(6)], SPLITS) for seed in (7, 8)]


class BrightnessClassifier:
    """Calls every attribute correct where the first pixel is bright; two features per image."""

    attributes = ("shape", "all_correct")

    def __init__(self) -> None:
        self.classified = 0

    def classify(
        self, images: NDArray[np.uint8], _prompts: Sequence[str]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
        self.classified += len(images)
        first = images[:, 0, 0, 0].astype(np.float64)
        return {"shape": first > 150, "all_correct": first > 100}, np.stack([first, first**2], 1)

    def reference(self, prompts: Sequence[str], *, seed: int) -> NDArray[np.float64]:
        return np.random.Generator(np.random.Philox(seed)).normal(size=(len(prompts), 2))


def decode(latents: torch.Tensor) -> NDArray[np.uint8]:
    """Fill an image with the first number of its latents."""
    first = latents[:, :1, :1, :1].numpy().astype(np.uint8)
    return np.broadcast_to(first, (len(latents), 2, 2, 3))


def random_latents() -> dict[str, list[NDArray[np.float32]]]:
    rng = np.random.Generator(np.random.Philox(1))
    return {
        name: [rng.uniform(0, 255, (6, 4, 2, 2)).astype(np.float32) for _ in ROUNDS] for name in ("teacher", "student")
    }


LATENTS = random_latents()


def measured(batch_size: int = 4, **changes: Any) -> dict[str, Scores]:
    options: dict[str, Any] = {"classifier": BrightnessClassifier(), **changes}
    return Measurement(ROUNDS, decode, batch_size=batch_size, **options).measure(LATENTS)


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
    classifier = BrightnessClassifier()
    for split, rows in SPLITS.items():
        generated, true = Moments(), Moments()
        for number, seed in enumerate((7, 8)):
            images = decode(torch.from_numpy(LATENTS["student"][number]))
            generated.update(classifier.classify(images, [])[1][rows])
            true.update(classifier.reference(["p"] * 6, seed=seed)[rows])
        expected = frechet_distance(generated, true)
        assert scores["student"][split]["frechet_classifier"].value == pytest.approx(expected)


def test_scores_do_not_depend_on_the_batch_size() -> None:
    for batch_size in (1, 6, 100):
        other = measured(batch_size)
        for name, splits in measured().items():
            for split, scores in splits.items():
                assert {n: s.value for n, s in other[name][split].items()} == pytest.approx(
                    {n: s.value for n, s in scores.items()}, rel=1e-9
                )


def test_every_image_is_decoded_and_classified_once() -> None:
    classifier = BrightnessClassifier()
    measured(classifier=classifier)
    assert classifier.classified == 2 * 2 * 6


def test_without_a_classifier_nothing_is_decoded_and_one_seed_has_no_spread() -> None:
    def refuse(_: torch.Tensor) -> NDArray[np.uint8]:
        raise AssertionError("an image was decoded")

    latents = {name: [np.full((6, 4, 2, 2), value, np.float32)] for name, value in (("teacher", 1), ("student", 4))}
    scores = Measurement(ROUNDS[:1], refuse, batch_size=2).measure(latents)
    assert scores["teacher"] == {split: {} for split in SPLITS}
    for split in SPLITS:
        assert list(scores["student"][split]) == ["latent_rmse"]
        assert scores["student"][split]["latent_rmse"].value == 3.0
        assert scores["student"][split]["latent_rmse"].spread is None


def test_a_result_that_is_not_finite_is_left_out() -> None:
    latents = {name: [array.copy() for array in arrays] for name, arrays in LATENTS.items()}
    latents["student"][0][3] = np.nan
    scores = Measurement(ROUNDS, decode, batch_size=4).measure(latents)["student"]
    assert list(scores["seen"]) == ["latent_rmse"]
    assert scores["unseen"] == scores["all"] == {}


class Undefined(Metric):
    name = "undefined"
    needs = frozenset({LATENT_FEATURES})

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


def test_decoded_images_do_not_depend_on_the_batch_size(tiny_family: Family, tmp_path: Path) -> None:
    latents = np.random.Generator(np.random.Philox(0)).standard_normal((6, 4, 8, 8), dtype=np.float32)
    images = []
    for batch_size in (1, 6):
        grid = PictureGrid(tmp_path / str(batch_size), ROUNDS[0], per_split=1)
        Measurement(ROUNDS[:1], tiny_family.decode, batch_size=batch_size, grid=grid).scores("teacher", [latents])
        images.append(
            [np.asarray(Image.open(file)).astype(int) for file in sorted((tmp_path / str(batch_size)).iterdir())]
        )
    assert images[0][0].shape == (64, 64, 3)
    assert np.abs(np.array(images[0]) - np.array(images[1])).max() <= 1


# the grid


def test_the_grid_has_an_image_of_every_model_for_some_prompts_of_every_split(tmp_path: Path) -> None:
    grid = PictureGrid(tmp_path / "grid", ROUNDS[0], per_split=1)
    measured(grid=grid)
    record = grid.record()
    assert list(record.splits) == ["seen", "unseen"]
    (seen,), (unseen,) = record.splits.values()
    assert (seen.prompt, unseen.prompt) == ("prompt 0", "prompt 2")
    for name in ("teacher", "student"):
        first = LATENTS[name][0][2, 0, 0, 0].astype(np.uint8)
        assert (np.asarray(Image.open(tmp_path / "grid" / unseen.images[name])) == first).all()
        assert unseen.correct[name] == bool(first > 100)
    assert len(list((tmp_path / "grid").iterdir())) == 4


def test_without_splits_and_classifier_the_grid_shows_all_prompts_without_marks(tmp_path: Path) -> None:
    only = Round(0, ["a", "b", "c"], {"all": slice(0, 3)})
    grid = PictureGrid(tmp_path, only, per_split=6)
    Measurement([only], decode, batch_size=2, grid=grid).scores("teacher", [np.zeros((3, 4, 2, 2), np.float32)])
    (entries,) = grid.record().splits.values()
    assert [entry.prompt for entry in entries] == ["a", "b", "c"]
    assert [entry.correct for entry in entries] == [{}, {}, {}]
