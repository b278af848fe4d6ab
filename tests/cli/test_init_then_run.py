"""For each family, the recipe that `init` writes is planned, and runs unchanged with `--quick`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from rich.console import Console

from condistill.cli import init
from condistill.cli.init import Goal, write_recipe
from condistill.config.quick import quick_recipe
from condistill.config.recipe import Recipe
from condistill.plan import ladder
from condistill.plan.ladder import Memory
from condistill.workflow.compress import compress

COST = SimpleNamespace(hours=1, training={"random_conditioning": SimpleNamespace(hours=1)})


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.TINY)
def test_what_init_writes_runs_unchanged_with_quick(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # other tests have accelerators without bf16
    kind = tiny.TINY[family]
    kind.build().save_pretrained(tmp_path / "teacher", safe_serialization=True)
    lines = kind.prompts if family == "dit" else tiny.WORDS
    (tmp_path / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(ladder.Rung, "memory", Memory(2, True, 10**9))  # test_init.py has the real choice
    monkeypatch.setattr(ladder.Rung, "images_at_once", 2)
    monkeypatch.setattr(ladder.Case, "cost", lambda *_: COST)
    monkeypatch.setattr(init, "cost_lines", lambda _: ["the cost"])
    path = write_recipe(
        str(tmp_path / "teacher"),
        [tmp_path / "prompts.txt"],
        tmp_path / "recipe.yaml",
        options={"resolution": kind.resolution} if kind.resolution else {},
        goal=Goal(device="h200"),
    )
    recipe = quick_recipe(Recipe.load(path))
    assert (recipe.cache.size, recipe.distill.mixed_precision) == (min(len(lines) // 2, 2), "bf16")
    out = compress(recipe, tmp_path / "run", console=Console(quiet=True))
    assert (out / "report.html").is_file()
    DiffusionPipeline.from_pretrained(out / "pipelines" / "random_conditioning", use_safetensors=True)
