from __future__ import annotations

from pathlib import Path

from condistill.prompts import PromptPool
from condistill.prompts.split import split_indices


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


def test_words_of_scripts_without_spaces_are_held_out(tmp_path: Path) -> None:
    pool = PromptPool.from_prompts(["星", "雪地上的一颗红星", "一只红色的狐狸"], tmp_path / "pool.arrow")
    assert split_indices(pool, unseen_words=["星"]).unseen.tolist() == [0, 1]
