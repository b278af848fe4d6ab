from __future__ import annotations

from pathlib import Path

import pytest

from condistill.distill import stopwatch as module
from condistill.distill.stopwatch import Stopwatch, train_sec
from condistill.errors import CondistillError


def test_the_seconds_of_a_training_add_up_over_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    first = Stopwatch(tmp_path)
    first.on_step(0, checkpoint=False)
    now = 107.0
    first.on_step(1, checkpoint=True)
    now = 109.0  # two more seconds without a checkpoint, then a power loss
    first.on_step(2, checkpoint=False)
    now = 500.0
    second = Stopwatch(tmp_path)
    second.on_step(1, checkpoint=False)
    now = 504.0
    second.on_step(3, checkpoint=True)
    assert train_sec(tmp_path, 3) == 11.0
    assert train_sec(tmp_path, 2) == 0.0  # a training that starts again
    assert train_sec(tmp_path / "nowhere", 3) == 0.0


def test_seconds_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / module.TIME_NAME).write_text('{"step": 1, "train_sec": 3.0}')
    with pytest.raises(CondistillError, match="has format 1, and this version"):
        train_sec(tmp_path, 3)
