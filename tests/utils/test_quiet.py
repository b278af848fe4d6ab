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


def test_a_pipeline_is_loaded_and_saved_without_a_word(
    tiny_pipeline_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet_libraries():
        DiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True).save_pretrained(tmp_path / "copy")
    assert capfd.readouterr() == ("", "")


def test_afterwards_all_is_as_it_was_before() -> None:
    loggings = (diffusers_logging, transformers_logging)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggings]
    with quiet_libraries():
        assert not any(each.is_progress_bar_enabled() for each in loggings)
    with pytest.raises(ZeroDivisionError), quiet_libraries():
        raise ZeroDivisionError
    assert [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggings] == before


def test_warnings_of_our_users_are_shown() -> None:
    with pytest.warns(UserWarning, match="mine"), quiet_libraries():
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_a_users_own_verbosity_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    quiet_environment()
    assert (os.environ["DIFFUSERS_VERBOSITY"], os.environ["TRANSFORMERS_VERBOSITY"]) == ("info", "error")


@pytest.mark.slow
def test_a_whole_command_prints_our_lines_only(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
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
    starts = ("condistill ", "prompts: ", "teacher: ", "cache: ", "random_conditioning: ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(starts)] == []
