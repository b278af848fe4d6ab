from __future__ import annotations

from pathlib import Path

import pytest

from condistill.errors import CondistillError
from condistill.prompts import PromptPool
from condistill.prompts.split import has_word, split_indices


@pytest.mark.parametrize(
    "prompt", ["a star", "Stars over the sea", "a STAR, red", "star-shaped", "the star's light", "box\tand starES"]
)
def test_a_whole_word_matches_in_any_case_and_plural(prompt: str) -> None:
    assert has_word(prompt, ["star"])


@pytest.mark.parametrize("prompt", ["a starfish", "start", "mustard", "stare", "star_1", "", "a ring"])
def test_a_part_of_a_word_does_not_match(prompt: str) -> None:
    assert not has_word(prompt, ["star"])


def test_phrases_match_with_any_white_space() -> None:
    assert has_word("two Polar  bears", ("cat", "polar bear"))
    assert not has_word("a polar dog and a bear", ("cat", "polar bear"))


def test_words_are_literal_and_unicode_letters_are_letters() -> None:
    assert has_word("written in c++ today", ["c++"])
    assert not has_word("written in cc", ["c++"])
    assert not has_word("überstar", ["star"])


def test_without_words_nothing_matches_and_an_empty_word_is_an_error() -> None:
    assert not has_word("a star", [])
    with pytest.raises(CondistillError, match="' ' is not a word"):
        has_word("a star", ["ring", " "])


def test_every_prompt_is_seen_or_unseen(tmp_path: Path) -> None:
    pool = PromptPool.from_prompts(["a cat", "a star", "a dog", "rings", "a fox"], tmp_path / "pool.arrow")
    held_out = PromptPool.from_prompts(["a dog", "not in the pool"], tmp_path / "unseen.arrow")
    split = split_indices(pool, unseen_words=["star", "ring"], unseen_prompts=held_out)
    assert pool.take(split.seen) == ["a cat", "a fox"]
    assert pool.take(split.unseen) == ["a star", "a dog", "rings"]
    seen, unseen = split_indices(pool)
    assert seen.tolist() == [0, 1, 2, 3, 4]
    assert unseen.size == 0
    assert seen.dtype == unseen.dtype == "int64"
