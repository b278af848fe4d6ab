from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from condistill.config.recipe import Recipe
from condistill.prompts import PromptPool
from condistill.prompts.split import Prompts
from condistill.teachers.family import Family
from condistill.workflow import preflight


def test_a_run_warns_of_prompts_that_are_longer_than_the_teacher_reads(
    tiny_family: Family, recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tiny_family.text_length
    pool = PromptPool.from_prompts(["a star", "a red star " * limit], tmp_path / "pool.arrow")
    prompts = Prompts(pool, pool, np.arange(2), np.arange(0))
    monkeypatch.setattr(preflight.distill_stage, "is_done", lambda _: False)
    monkeypatch.setattr(preflight.prompts_stage, "open", lambda _: prompts)
    monkeypatch.setattr(preflight, "on_main_process", lambda _, check: check())
    lines: list[str] = []
    run: Any = SimpleNamespace(
        recipe=recipe_of("miniature", {"width": 0.5}, evaluate={"prompts_per_split": 2}),
        family=tiny_family,
        accelerator=None,
        once=lambda _, make: make(),
        say=lambda text, **_: lines.append(text),
    )
    preflight.check_prompts(run)
    assert lines == [
        f"warning: 1 of 2 prompts are longer than the {limit} tokens that the text encoder reads; the rest of each is "
        "ignored"
    ]
