from __future__ import annotations

from typing import Any

import numpy as np

from condistill.config.evaluate import EvaluateSettings
from condistill.evaluate.rounds import Round, choose_rounds, diversity_rounds

PROMPTS = ["a red ball", "a blue box", "a star", "two stars"]
ROUND = Round(3, PROMPTS, {"seen": slice(0, 2), "unseen": slice(2, 4), "all": slice(0, 4)})


def settings_of(**changes: Any) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"prompts_per_split": 2, "batch_size": 2, **changes})


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
    assert list(Round(0, PROMPTS, {"all": slice(0, 4)}).parts) == ["all"]


def test_the_head_of_a_round_has_the_first_prompts_of_every_split_and_their_noise() -> None:
    head = ROUND.head(1)
    assert head.prompts == ["a red ball", "a star"]
    assert head.splits == {"seen": slice(0, 1), "unseen": slice(1, 2), "all": slice(0, 2)}
    assert [head.number(row) for row in range(2)] == [0, 2]
    assert ROUND.head(9).prompts == ROUND.prompts
    alone = Round(3, ROUND.prompts, {"all": slice(0, 4)}).head(2)
    assert (alone.prompts, alone.splits) == (ROUND.prompts[:2], {"all": slice(0, 2)})


def test_diversity_is_measured_on_the_same_prompts_from_several_seeds() -> None:
    rounds = diversity_rounds(ROUND, settings_of(diversity_prompts=3, diversity_seeds=2))
    assert [each.seed for each in rounds] == [3, 4]
    for each in rounds:
        assert each.prompts == ["a red ball", "a blue box", "a star"]
        assert [each.number(row) for row in range(3)] == [0, 1, 2]
    assert diversity_rounds(ROUND, settings_of(diversity_prompts=0)) == []
