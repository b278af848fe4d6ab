from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from condistill.config.recipe import TEACHER
from condistill.evaluate.generate import Round, generate_round
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.references import References
from condistill.pipelines.sampling import Sampling
from condistill.run.stage_directory import StageDir
from condistill.teachers.family import Family

ROUND = Round(
    3,
    ["a red ball", "a blue box", "a star", "two stars"],
    {"seen": slice(0, 2), "unseen": slice(2, 4), "all": slice(0, 4)},
)
SAMPLING = {TEACHER: Sampling(1, 1.0), "small": Sampling(1, 1.0)}


def test_the_head_of_a_round_has_the_first_prompts_of_every_split_and_their_noise() -> None:
    head = ROUND.head(1)
    assert head.prompts == ["a red ball", "a star"]
    assert head.splits == {"seen": slice(0, 1), "unseen": slice(1, 2), "all": slice(0, 2)}
    assert [head.number(row) for row in range(2)] == [0, 2]
    assert ROUND.head(9).prompts == ROUND.prompts
    alone = Round(3, ROUND.prompts, {"all": slice(0, 4)}).head(2)
    assert (alone.prompts, alone.splits) == (ROUND.prompts[:2], {"all": slice(0, 2)})


@pytest.fixture
def generated(tiny_family: Family, tmp_path: Path) -> Any:
    """The teacher's latents of the head of the round, taken from those of the whole round."""
    latents = generate_round(
        tmp_path / "teacher.arrow",
        tiny_family,
        tiny_family.denoiser,
        ROUND,
        model=TEACHER,
        batch_size=4,
        sampling=SAMPLING[TEACHER],
    )
    return latents[list(ROUND.head(1).numbers)]


def references(family: Family, folder: Path, printed_lines: list[str] | None = None) -> References:
    def directory(name: str) -> StageDir:
        return StageDir(folder, name, lambda: {"name": name})

    say: Callable[[str], Any] = (printed_lines if printed_lines is not None else []).append
    return References(
        family,
        ROUND.head(1),
        family.decode,
        2,
        directory=directory,
        say=say,
        on_images=lambda *_: None,
    )


def test_a_student_that_was_its_teacher_had_no_distance_and_other_noise_gives_one(
    tiny_family: Family, generated: Any, tmp_path: Path
) -> None:
    def refuse() -> nn.Module:
        raise AssertionError("the latents are there")

    for load in (lambda: tiny_family.denoiser, refuse):
        record = references(tiny_family, tmp_path).record(generated, {"small": load}, SAMPLING)
        assert record.images_per_split == {"seen": 1, "unseen": 1, "all": 2}
        assert {split: scores["latent_rmse"].value for split, scores in record.untrained["small"].items()} == {
            "seen": pytest.approx(0, abs=1e-3),
            "unseen": pytest.approx(0, abs=1e-3),
            "all": pytest.approx(0, abs=1e-3),
        }
        assert all(scores["latent_rmse"].value > 0.1 for scores in record.other_seed.values())


def test_only_distances_to_the_teacher_have_references() -> None:
    assert [name for name, metric in METRICS.items() if metric.is_distance_to_teacher()] == [
        "dinov2_distance",
        "latent_rmse",
    ]


def test_a_reference_that_is_not_finite_is_a_warning(tiny_family: Family, generated: Any, tmp_path: Path) -> None:
    import copy

    broken = copy.deepcopy(tiny_family.denoiser)
    with torch.no_grad():
        for weight in broken.parameters():
            weight.fill_(float("nan"))
    printed_lines: list[str] = []
    record = references(tiny_family, tmp_path, printed_lines).record(generated, {"small": lambda: broken}, SAMPLING)
    assert record.untrained == {"small": {}}
    assert record.other_seed
    (line,) = printed_lines
    assert line.startswith("warning: no reference small.untrained: small.untrained generated latents that are not")
