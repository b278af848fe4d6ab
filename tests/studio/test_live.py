from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from grids import write_previews
from studio_runs import train, write_run

from condistill.studio import live as module
from condistill.studio.live import LiveRun


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path, tmp_path / "teacher", {})


def whole(live: LiveRun) -> str:
    return "".join(live.html())


def test_a_running_distillation_shows_its_step_its_time_left_its_losses_and_its_newest_preview(run: Path) -> None:
    live = LiveRun(run)
    train(run, "plain", 10)
    first = whole(live)
    assert "running, process" in first
    assert "distill plain, 10/60 steps, 2.00 steps/s, 2:05 left of this part" in first
    assert '<progress value="10" max="60"' in first
    assert "plain from 1.00 at step 1 to 0.100 at step 10" in first
    assert "plain after 10 steps (right), and the teacher (left)" in first
    train(run, "plain", 20)
    second = whole(live)
    assert "20/60 steps" in second
    assert "0.0500 at step 20" in second
    assert "plain after 20 steps (right)" in second
    assert "plain after 10 steps (right)" not in second
    earlier = second.partition("Earlier previews of plain</summary>")[2]
    assert [f"<figcaption>step {step}</figcaption>" in earlier for step in (0, 10, 20)] == [True, True, False]


def test_of_many_previews_a_few_are_shown_and_kept(run: Path) -> None:
    live = LiveRun(run)
    for steps in (100, 101):
        train(run, "plain", steps)
        write_previews(run / "distill/plain/previews", range(0, steps, 2))
        html = whole(live)
        assert html.count("<figcaption>step ") == 12
        assert "<figcaption>step 0</figcaption>" in html
        assert len(live._previews) == 13


def test_files_that_did_not_change_are_not_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    original = module.read_history
    monkeypatch.setattr(module, "read_history", lambda file: read.append(file) or original(file))
    live = LiveRun(run)
    train(run, "plain", 10)
    assert whole(live) == whole(live)
    assert len(read) == 1


def test_prompts_and_labels_with_markup_are_text(run: Path) -> None:
    train(run, "plain", 10, label="<script>\x1b[2J")
    html = whole(LiveRun(run))
    assert "<script" not in html
    assert "<b>" not in html
    assert "\x1b" not in html
    assert "&lt;b&gt;a seen prompt&lt;/b&gt; (seen)" in html
    assert "&lt;script&gt;\\x1b[2J" in html


def test_a_run_that_has_not_begun_lists_what_is_to_do(run: Path) -> None:
    html = whole(LiveRun(run))
    assert "unfinished" in html
    assert "distill plain: 0 of 6 steps" in html


def test_damaged_files_are_left_out(run: Path) -> None:
    train(run, "plain", 10)
    (run / "distill/plain/previews/step-000010.png").write_bytes(b"no image")
    (run / "distill/plain/checkpoints/history.jsonl").write_bytes(b"\xff\n{}\n")
    (run / "status.json").write_text("{", encoding="utf-8")
    html = whole(LiveRun(run))
    assert "warning: " in html
    assert "step 10" not in html
    assert "chart" not in html


def test_a_run_that_is_gone_is_a_message(tmp_path: Path) -> None:
    html = whole(LiveRun(tmp_path / "gone"))
    assert "there is no folder" in html
    ET.fromstring(html)
