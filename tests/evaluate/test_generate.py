from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from condistill.config.sections import EvaluateSettings
from condistill.evaluate import generate as run
from condistill.evaluate.generate import Round, decode_all, draw_round, measure, rounds, write_grid
from condistill.evaluate.metrics.frechet import frechet_distance
from condistill.pipelines.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, image_noise

PROMPTS = ["a red circle", "a blue square", "a green moon"]
ROUND = Round(4, PROMPTS, {"seen": slice(0, 2), "unseen": slice(2, 3), "all": slice(0, 3)})


def settings_of(**changes: Any) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"prompts_per_split": 2, "batch_size": 2, **changes})


# which prompts


def choose(split: str, n: int, rng: np.random.Generator) -> list[str]:
    return [f"{split} {i}" for i in rng.choice(100, n, replace=False)]


def test_every_seed_has_its_own_prompts_of_every_split() -> None:
    made = rounds(settings_of(seeds=(0, 1), prompts_per_split=3), choose, ("seen", "unseen"))
    assert [this.seed for this in made] == [0, 1]
    for this in made:
        assert this.splits == {"seen": slice(0, 3), "unseen": slice(3, 6), "all": slice(0, 6)}
        assert [prompt.split()[0] for prompt in this.prompts] == ["seen"] * 3 + ["unseen"] * 3
    assert made[0].prompts != made[1].prompts


def test_a_seeds_prompts_depend_on_nothing_but_the_seed() -> None:
    alone = rounds(settings_of(seeds=(1,)), choose, ("seen", "unseen"))
    among = rounds(settings_of(seeds=(0, 1, 2)), choose, ("seen", "unseen"))
    assert alone[0] == among[1]


def test_a_split_with_fewer_prompts_than_asked_for_is_as_long_as_it_is() -> None:
    def choose_few(split: str, _n: int, _rng: np.random.Generator) -> list[str]:
        return ["one"] if split == "unseen" else ["a", "b"]

    (this,) = rounds(settings_of(), choose_few, ("seen", "unseen"))
    assert this.splits["unseen"] == slice(2, 3)
    assert this.splits["all"] == slice(0, 3)


# drawing


def drawn(path: Path, family: Family, batch_size: int = 2) -> NDArray[np.float32]:
    return draw_round(path, family, family.denoiser, ROUND, batch_size=batch_size, sampling=Sampling(1, 2.0))


def test_every_model_starts_from_the_noise_of_its_prompts_number(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[int, list[torch.Tensor]] = {}

    def sample(_denoiser: Any, _prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        given.setdefault(batch_size, []).append(noise)
        return noise

    monkeypatch.setattr(tiny_family, "sample", sample)
    for batch_size in (1, 2, 3):
        drawn(tmp_path / f"model-{batch_size}.arrow", tiny_family, batch_size)
        for i, noise in enumerate(torch.cat(given[batch_size])):
            np.testing.assert_array_equal(noise, image_noise(4, Stream.EVALUATION_NOISE, i, (4, 8, 8)))


def test_a_round_is_what_the_pipeline_draws(tiny_family: Family, tmp_path: Path) -> None:
    noise = np.stack([image_noise(4, Stream.EVALUATION_NOISE, i, (4, 8, 8)) for i in range(3)])
    expected = tiny_family.sample(
        tiny_family.denoiser, PROMPTS, torch.from_numpy(noise), num_inference_steps=1, guidance_scale=2.0
    )
    np.testing.assert_allclose(drawn(tmp_path / "student.arrow", tiny_family), expected, rtol=1e-4, atol=1e-4)


def test_a_round_that_was_drawn_is_not_drawn_again(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = drawn(tmp_path / "student.arrow", tiny_family)
    monkeypatch.setattr(tiny_family, "sample", None)
    np.testing.assert_array_equal(drawn(tmp_path / "student.arrow", tiny_family), first)


def test_images_are_the_same_whatever_the_batch_size(tiny_family: Family) -> None:
    latents = np.random.Generator(np.random.Philox(0)).standard_normal((3, 4, 8, 8), dtype=np.float32)
    one, three = (decode_all(tiny_family, latents, batch_size=n).astype(int) for n in (1, 3))
    assert one.shape == (3, 64, 64, 3)
    assert np.abs(one - three).max() <= 1


# measuring


class BrightnessJudge:
    """Calls an image right where its first pixel is bright; two features per image."""

    name = "brightness"

    def classify(
        self, images: NDArray[np.uint8], _prompts: Sequence[str]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
        first = images[:, 0, 0, 0].astype(np.float64)
        return {"bright": first > 100, "all_correct": first > 100}, np.stack([first, first**2], 1)

    def reference(self, prompts: Sequence[str], *, seed: int) -> NDArray[np.float64]:
        return np.random.Generator(np.random.Philox(seed)).normal(size=(len(prompts), 2))


def decode(_family: Any, latents: NDArray[np.float32], *, batch_size: int) -> NDArray[np.uint8]:
    """An image is filled with its latents' first number."""
    return np.broadcast_to(latents[:, :1, :1, :1].astype(np.uint8), (len(latents), 2, 2, 3))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Latents of a teacher and a student over two seeds, and what was measured of them."""
    monkeypatch.setattr(run, "decode_all", decode)
    rng = np.random.Generator(np.random.Philox(1))
    splits = {"seen": slice(0, 2), "unseen": slice(2, 6), "all": slice(0, 6)}
    made = [Round(seed, [f"prompt {i}" for i in range(6)], splits) for seed in (7, 8)]
    latents = {
        name: [rng.uniform(0, 255, (6, 4, 2, 2)).astype(np.float32) for _ in made] for name in ("teacher", "student")
    }
    family: Any = None
    models, shown = measure(latents, family, made, settings_of(), BrightnessJudge())
    return latents, models, shown


def test_the_distance_to_the_teacher_is_the_mean_over_images(measured: Any) -> None:
    latents, models, _ = measured
    for split, part in (("seen", slice(0, 2)), ("unseen", slice(2, 6)), ("all", slice(0, 6))):
        means = []
        for student, teacher in zip(latents["student"], latents["teacher"], strict=True):
            errors = (student[part].astype(float) - teacher[part]).reshape(-1, 16)
            means.append(np.mean([np.sqrt((error**2).sum() / 16) for error in errors]))
        assert models["student"][split]["latent_rmse"] == pytest.approx(np.mean(means))
        assert models["student"]["spread"][split]["latent_rmse"] == pytest.approx(np.std(means, ddof=1))
    assert "latent_rmse" not in models["teacher"]["all"]


def test_classified_attributes_are_shares_of_images(measured: Any) -> None:
    latents, models, shown = measured
    right = [part[:, 0, 0, 0].astype(np.uint8) > 100 for part in latents["student"]]
    assert models["student"]["unseen"]["bright"] == pytest.approx(np.mean([r[2:].mean() for r in right]))
    assert 0 < models["student"]["all"]["all_correct"] < 1
    np.testing.assert_array_equal(shown["student"]["right"], right[0])


def test_the_frechet_distance_is_over_the_images_of_all_seeds_in_a_split(measured: Any) -> None:
    latents, models, _ = measured
    classifier = BrightnessJudge()
    for split, part in (("seen", slice(0, 2)), ("unseen", slice(2, 6))):
        here = [classifier.classify(decode(None, seeds, batch_size=1), [])[1][part] for seeds in latents["student"]]
        true = [classifier.reference(["p"] * 6, seed=seed)[part] for seed in (7, 8)]
        expected = frechet_distance(np.concatenate(here), np.concatenate(true))
        assert models["student"][split]["frechet_classifier"] == pytest.approx(expected)


def test_one_seed_has_no_spread_and_no_classifier_judges_nothing(
    tiny_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "decode_all", decode)
    latents = {name: [np.full((3, 4, 2, 2), value, np.float32)] for name, value in (("teacher", 1), ("student", 4))}
    models, shown = measure(latents, tiny_family, [ROUND], settings_of(), None)
    assert models["student"] == {split: {"latent_rmse": 3.0} for split in ROUND.splits}
    assert models["teacher"] == {split: {} for split in ROUND.splits}
    assert shown["teacher"]["right"] is None


def test_the_grid_has_a_picture_of_every_model_for_some_prompts_of_every_split(tmp_path: Path) -> None:
    images = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    shown = {
        "teacher": {"images": images, "right": None},
        "student": {"images": images[::-1], "right": np.array([True, False, True])},
    }
    grid = write_grid(tmp_path / "grid", shown, ROUND, per_split=1)
    assert list(grid) == ["seen", "unseen"]
    (seen,), (unseen,) = grid.values()
    assert seen["prompt"] == PROMPTS[0]
    assert unseen["prompt"] == PROMPTS[2]
    assert seen["right"] == {"student": True}
    for name, expected in (("teacher", images[2]), ("student", images[0])):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid" / unseen["images"][name])), expected)
    assert len(list((tmp_path / "grid").iterdir())) == 4


def test_without_splits_the_grid_shows_all(tmp_path: Path) -> None:
    shown = {"teacher": {"images": np.zeros((3, 4, 4, 3), np.uint8), "right": None}}
    this = Round(0, PROMPTS, {"all": slice(0, 3)})
    assert [entry["prompt"] for entry in write_grid(tmp_path, shown, this, per_split=6)["all"]] == PROMPTS
