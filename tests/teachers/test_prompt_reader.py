from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY

from condistill.prompts import PromptPool
from condistill.prompts.lengths import long_prompts
from condistill.teachers.family import Family

LIMITS = {"flux": ("tokenizer_2", 512), "stable_diffusion_3": ("tokenizer_3", 256)}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_long_prompts_are_found_with_the_tokenizer_of_every_family(
    tiny_teacher: Callable[[str], Family], tmp_path: Path, name: str
) -> None:
    family = tiny_teacher(name)
    if name == "dit":
        assert family.prompt_reader is None
        return
    component, limit = LIMITS.get(name, ("tokenizer", family.text_length))
    assert family.prompt_reader == (getattr(family.pipeline, component), limit)
    pool = PromptPool.from_prompts(["a red star", "a red star " * limit], tmp_path / "pool.arrow")
    assert str(long_prompts(pool, *family.prompt_reader)).startswith(f"1 of 2 prompts are longer than the {limit} tok")


def test_the_tokenizer_of_a_teacher_counts_as_its_encoder_reads(tiny_family: Family, tmp_path: Path) -> None:
    reader = tiny_family.prompt_reader
    assert reader
    tokenizer, limit = reader
    prompts = ["star " * (limit - 2), "star " * (limit - 1), "a star"]
    pool = PromptPool.from_prompts(prompts, tmp_path / "pool.arrow")
    truncated = [len(tokenizer(p, truncation=False)["input_ids"]) > limit for p in pool]
    assert str(long_prompts(pool, tokenizer, limit)).startswith(f"{sum(truncated)} of 3 prompts")
