"""A finished run, and copies of it that tests may change."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import Run


@pytest.fixture(scope="session")
def finished(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run. Read only."""
    run = Run(tmp_path_factory.mktemp("finished"), tiny_pipeline_dir)
    run.again("distill.preview_every=3")
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run that a test may change."""
    kept = tmp_path / "kept"
    shutil.copytree(finished.out, kept)
    copy = Run(finished.folder, finished.teacher)
    copy.out = kept
    return copy


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(importlib.import_module("condistill.run.context"), "load_teacher", refuse)
