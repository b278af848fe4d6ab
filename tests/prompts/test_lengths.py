from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from condistill.prompts import PromptPool, lengths
from condistill.prompts.lengths import long_prompts


class WordTokenizer:
    """One token per word, and one at each end; it counts the texts that it is given."""

    def __init__(self) -> None:
        self.texts = 0

    def __call__(self, texts: str | list[str], **_: Any) -> dict[str, Any]:
        self.texts += 1 if isinstance(texts, str) else len(texts)
        ids = [[0, *(1 for _ in text.split()), 2] for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}


def test_prompts_longer_than_the_encoder_reads_are_counted(tmp_path: Path) -> None:
    prompts = ["a star", "a b c d e f g h", "a b c d e f g h i", "extraordinarily long words", "ä" * 40]
    pool = PromptPool.from_prompts(prompts, tmp_path / "pool.arrow")
    assert long_prompts(pool, WordTokenizer(), 10) == (
        "1 of 5 prompts are longer than the 10 tokens that the text encoder reads; the rest of each is ignored"
    )
    assert long_prompts(pool, WordTokenizer(), 11) is None
    assert long_prompts(pool, WordTokenizer(), 10**30) is None


def test_short_prompts_are_not_tokenized(tmp_path: Path) -> None:
    pool = PromptPool.from_prompts([f"a star {number}" for number in range(50)], tmp_path / "pool.arrow")
    tokenizer = WordTokenizer()
    assert long_prompts(pool, tokenizer, 77) is None
    assert tokenizer.texts == 1


def test_the_number_is_an_estimate_where_many_prompts_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_SAMPLE", 50)
    texts = (("w " * 30 if number % 4 else "w" * 60) + str(number) for number in range(1000))
    pool, tokenizer = PromptPool.from_prompts(texts, tmp_path / "pool.arrow"), WordTokenizer()
    warning = str(long_prompts(pool, tokenizer, 20))
    assert warning.startswith("about ")
    assert abs(int(warning.split()[1]) - 750) < 100
    assert tokenizer.texts == 51


def test_a_very_long_prompt_is_not_tokenized_whole(tmp_path: Path) -> None:
    pool = PromptPool.from_prompts(["w " * 40_000 + "w"], tmp_path / "pool.arrow")
    seen: list[int] = []

    class Tokenizer(WordTokenizer):
        def __call__(self, texts: str | list[str], **options: Any) -> dict[str, Any]:
            seen.extend(map(len, texts))
            return super().__call__(texts, **options)

    assert "1 of 1 prompts" in str(long_prompts(pool, Tokenizer(), 10))
    assert max(seen) == 200
