"""The how-tos of CONTRIBUTING.md, executed as one plugin that a run then uses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import quick_python

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
HOW_TOS = ("A schedule of p(u)", "A loss term", "A metric", "A teacher family", "A stage", "An export format")
RUN = """
from condistill import Recipe, compress, export_pipeline
from condistill.teachers.registry import family_of_pipeline

assert family_of_pipeline("CompanyDiffusionPipeline").name == "company_diffusion"
compress(Recipe.load("recipe.yaml"), "run")
export_pipeline("run", "denoiser", out="denoiser")
"""


def block(how_to: str) -> str:
    """Return the Python block of a section."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    section = text.split(f"### {how_to}\n", 1)[1].split("\n##", 1)[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, how_to
    return str(blocks[0])


@pytest.mark.parametrize("how_to", HOW_TOS)
def test_a_how_to_registers_with_one_line(how_to: str) -> None:
    assert len(re.findall(r"^@?register_\w+", block(how_to), re.MULTILINE)) == 1


@pytest.mark.slow  # a whole run, in a process of its own, whose registries nobody else sees
def test_a_run_uses_what_the_how_tos_register(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    plugin = "\n\n".join(block(how_to) for how_to in HOW_TOS)
    (tmp_path / "plugin.py").write_text(plugin, encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a box\na longer prompt\n", encoding="utf-8")
    recipe = {
        "teacher": {"pipeline": str(tiny_pipeline_dir)},
        "prompts": {"files": ["prompts.txt"]},
        "cache": {"size": 2, "num_inference_steps": 2, "batch_size": 2},
        "student": {"width": 0.5},
        "distill": {
            "steps": 2,
            "preview_every": 0,
            "batch_size": 2,
            "conditioning": {"probability": {"schedule": "linear", "slope": 0.5}},
            "loss": {"extra": {"absolute": 0.1}},
            "logging": {"log_every": 1},
        },
        "evaluate": {"prompts_per_split": 2, "batch_size": 2, "grid": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [quick_python(), "-c", "import plugin\n" + RUN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert (run / "longest_prompt" / "prompt.txt").read_text("utf-8") == "a longer prompt"
    history = next(run.rglob("history.jsonl")).read_text("utf-8").splitlines()
    assert all(json.loads(line)["terms"]["absolute"] > 0 for line in history)
    models = json.loads((run / "metrics.json").read_text("utf-8"))["models"]
    brightness = models["teacher"]["scores"]["all"]["brightness"]
    assert 0 < brightness["low"] <= brightness["value"] <= brightness["high"]
    assert (tmp_path / "denoiser" / "weights.safetensors").stat().st_size > 0
    assert "schedule: linear" in (run / "recipe.yaml").read_text("utf-8")
