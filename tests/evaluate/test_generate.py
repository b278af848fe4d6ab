from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from condistill.config.evaluate import EvaluateSettings
from condistill.errors import CondistillError
from condistill.evaluate.generate import Round, choose_rounds, generate_round
from condistill.pipelines.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, image_noise

PROMPTS = ["a red circle", "a blue square", "a green moon"]
ROUND = Round(4, PROMPTS, {"seen": slice(0, 2), "unseen": slice(2, 3), "all": slice(0, 3)})


def settings_of(**changes: Any) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"prompts_per_split": 2, "batch_size": 2, **changes})


# prompts


def choose(split: str, n: int, rng: np.random.Generator) -> list[str]:
    return [f"{split} {i}" for i in rng.choice(100, n, replace=False)]


def test_every_seed_has_its_own_prompts_of_every_split() -> None:
    rounds = choose_rounds(settings_of(seeds=(0, 1), prompts_per_split=3), choose, ("seen", "unseen"))
    assert [each.seed for each in rounds] == [0, 1]
    for each in rounds:
        assert each.splits == {"seen": slice(0, 3), "unseen": slice(3, 6), "all": slice(0, 6)}
        assert [prompt.split()[0] for prompt in each.prompts] == ["seen"] * 3 + ["unseen"] * 3
        assert [each.count(split) for split in each.splits] == [3, 3, 6]
    assert rounds[0].prompts != rounds[1].prompts


def test_the_prompts_of_a_seed_depend_on_the_seed_alone() -> None:
    alone = choose_rounds(settings_of(seeds=(1,)), choose, ("seen", "unseen"))
    among = choose_rounds(settings_of(seeds=(0, 1, 2)), choose, ("seen", "unseen"))
    assert alone[0] == among[1]


def test_a_split_with_too_few_prompts_uses_all_of_them() -> None:
    def choose_few(split: str, _n: int, _rng: np.random.Generator) -> list[str]:
        return ["one"] if split == "unseen" else ["a", "b"]

    (only,) = choose_rounds(settings_of(), choose_few, ("seen", "unseen"))
    assert only.splits["unseen"] == slice(2, 3)
    assert only.splits["all"] == slice(0, 3)


def test_the_parts_of_a_round_do_not_overlap() -> None:
    assert list(ROUND.parts) == ["seen", "unseen"]
    assert list(Round(0, PROMPTS, {"all": slice(0, 3)}).parts) == ["all"]


# latents


def generated(path: Path, family: Family, batch_size: int = 2) -> NDArray[np.float32]:
    return generate_round(
        path, family, family.denoiser, ROUND, model=path.stem, batch_size=batch_size, sampling=Sampling(1, 2.0)
    )


def test_every_model_starts_from_the_noise_of_the_row(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises: dict[int, list[torch.Tensor]] = {}

    def sample(_denoiser: Any, _prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        noises.setdefault(batch_size, []).append(noise)
        return noise

    monkeypatch.setattr(tiny_family, "sample", sample)
    for batch_size in (1, 2, 3):
        generated(tmp_path / f"model-{batch_size}.arrow", tiny_family, batch_size)
        for i, noise in enumerate(torch.cat(noises[batch_size])):
            np.testing.assert_array_equal(noise, image_noise(4, Stream.EVALUATION_NOISE, i, (4, 8, 8)))


def test_the_latents_are_those_of_the_pipeline(tiny_family: Family, tmp_path: Path) -> None:
    noise = np.stack([image_noise(4, Stream.EVALUATION_NOISE, i, (4, 8, 8)) for i in range(3)])
    expected = tiny_family.sample(
        tiny_family.denoiser, PROMPTS, torch.from_numpy(noise), num_inference_steps=1, guidance_scale=2.0
    )
    np.testing.assert_allclose(generated(tmp_path / "student.arrow", tiny_family), expected, rtol=1e-4, atol=1e-4)


def test_a_finished_round_is_not_generated_again(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generated(tmp_path / "student.arrow", tiny_family)
    monkeypatch.setattr(tiny_family, "sample", None)
    np.testing.assert_array_equal(generated(tmp_path / "student.arrow", tiny_family), first)


@pytest.mark.parametrize(("model", "remedy"), [("teacher", "teacher.dtype"), ("mine", "a lower .*learning_rate")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused_with_the_name_of_the_model_and_are_not_kept(
    *, tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, remedy: str, bad: float
) -> None:
    def sample(_denoiser: Any, prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        noise[-1, 0, 0, 0] = bad
        return noise

    monkeypatch.setattr(tiny_family, "sample", sample)
    with pytest.raises(CondistillError, match=rf"^{model} generated .*not finite for 1 of 2 prompt.*{remedy}"):
        generated(tmp_path / f"{model}.arrow", tiny_family)
    assert not [*tmp_path.iterdir()]
