from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from condistill.utils.quiet import quiet_environment, quiet_libraries


def test_loading_and_saving_a_pipeline_prints_nothing(
    tiny_pipeline_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet_libraries():
        DiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True).save_pretrained(tmp_path / "copy")
    assert capfd.readouterr() == ("", "")


def test_the_logging_settings_are_restored() -> None:
    modules = (diffusers_logging, transformers_logging)
    before = [(module.get_verbosity(), module.is_progress_bar_enabled()) for module in modules]
    with quiet_libraries():
        assert not any(module.is_progress_bar_enabled() for module in modules)
    with pytest.raises(ZeroDivisionError), quiet_libraries():
        raise ZeroDivisionError
    assert [(module.get_verbosity(), module.is_progress_bar_enabled()) for module in modules] == before


def test_warnings_of_other_packages_are_shown() -> None:
    with pytest.warns(UserWarning, match="from the user"), quiet_libraries():
        warnings.warn("from the user", UserWarning, stacklevel=1)


def test_the_verbosity_that_a_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    quiet_environment()
    assert (os.environ["DIFFUSERS_VERBOSITY"], os.environ["TRANSFORMERS_VERBOSITY"]) == ("info", "error")


@pytest.mark.slow
def test_a_command_prints_only_lines_of_condistill(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"a {word} ball\n" for word in "abcdefgh"), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"teacher: {{pipeline: '{tiny_pipeline_dir}'}}\nprompts: {{files: [prompts.txt]}}\nstudent: {{width: 0.5}}\n"
        "cache: {size: 2, num_inference_steps: 1}\ndistill: {steps: 1, batch_size: 2}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "condistill", "distill", str(recipe), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    starts = ("planned on ", "memory: ", "condistill ", "prompts of ", "prompts: ", "warning: ", "teacher: ", "cache: ")
    starts += ("random_conditioning: ",)
    assert [line for line in done.stderr.splitlines() if not line.startswith(starts)] == []
