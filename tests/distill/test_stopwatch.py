from __future__ import annotations

from pathlib import Path

import pytest

from condistill.distill import stopwatch as module
from condistill.distill.stopwatch import Stopwatch, train_sec


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
    assert train_sec(tmp_path, 1) == 7.0
    assert train_sec(tmp_path, 0) == 0.0


def test_seconds_are_unknown_rather_than_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    for damage in (None, "{", '{"step": 1, "train_sec": 3.0}', '{"format": 3, "train_sec": {"x": 1.0}}', "\0"):
        if damage is not None:
            (tmp_path / module.TIME_NAME).write_text(damage)
        assert train_sec(tmp_path, 3) is None
        resumed = Stopwatch(tmp_path)
        resumed.on_step(2, checkpoint=False)  # nobody knows how long the first two steps took
        now += 5
        resumed.on_step(4, checkpoint=True)
        assert train_sec(tmp_path, 4) is None


def test_a_training_that_falls_back_counts_up_to_the_checkpoint_that_it_resumes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    first = Stopwatch(tmp_path)
    first.on_step(0, checkpoint=False)
    for step in (2, 4):
        now += 10
        first.on_step(step, checkpoint=True)
    second = Stopwatch(tmp_path)
    second.on_step(2, checkpoint=False)  # the checkpoint of step 4 was damaged
    assert train_sec(tmp_path, 4) is None
    now += 11
    second.on_step(4, checkpoint=True)
    assert train_sec(tmp_path, 4) == 21.0
