"""What a variant's student is derived from is computed once, and read again by a resumed run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny_transformers import BLOCKS

from condistill.config.sections import StudentSettings
from condistill.errors import CorruptError
from condistill.students import settle
from condistill.students.scores.calibration import Calibration
from condistill.students.scores.record import Scores
from condistill.students.settle import IMPORTANCE_NAME, LAYER_SCORES_NAME, SETTINGS_NAME, settle_student


def settled(family: Any, cache: Any, directory: Any, *, seed: int = 0, batch_size: int = 4, **settings: Any) -> Any:
    calibration = Calibration(cache, seed, batch_size)
    student = StudentSettings.model_validate(settings)
    return settle_student(family, student, calibration, directory=directory, accelerator=Accelerator())


def test_settings_without_a_target_or_scores_need_no_file(tiny_family, tiny_cache, tmp_path):
    settings, scores = settled(tiny_family, tiny_cache, tmp_path, width=0.5)
    assert settings == StudentSettings(width=0.5)
    assert scores == Scores()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_width_that_meets_a_target_is_chosen_once(tiny_family, tiny_cache, tmp_path):
    target = {"params": 0.5}
    chosen, _ = settled(tiny_family, tiny_cache, tmp_path, target=target)
    assert chosen.target is None
    other = chosen.model_copy(update={"width": (8, 8, 8)})
    assert chosen.width != other.width
    (tmp_path / SETTINGS_NAME).write_text(other.model_dump_json(), encoding="utf-8")
    assert settled(tiny_family, tiny_cache, tmp_path, target=target)[0] == other
    (tmp_path / SETTINGS_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(CorruptError, match="delete it and run again"):
        settled(tiny_family, tiny_cache, tmp_path, target=target)


def test_channel_scores_are_measured_once(tiny_family, tiny_cache, tmp_path):
    student = {"width": 0.5, "importance": "activation"}
    first = settled(tiny_family, tiny_cache, tmp_path, batch_size=32, **student)[1].channel_importance
    assert [file.name for file in tmp_path.iterdir()] == [IMPORTANCE_NAME]
    again = settled(tiny_family, tiny_cache, tmp_path, seed=1, **student)[1].channel_importance  # seed 1 would differ
    assert all(torch.equal(first[name], score) for name, score in again.items())
    (tmp_path / IMPORTANCE_NAME).write_bytes(b"not safetensors")
    with pytest.raises(CorruptError, match="delete it and run again"):
        settled(tiny_family, tiny_cache, tmp_path, **student)


def test_layer_scores_are_measured_once(tiny_family, tiny_cache, tmp_path, monkeypatch):
    measured = {BLOCKS: [0.25, 0.5]}
    monkeypatch.setattr(settle, "layer_scores", lambda *_: measured)
    assert settled(tiny_family, tiny_cache, tmp_path, depth=0.5)[1] == Scores(layer_scores=measured)
    monkeypatch.setattr(settle, "layer_scores", lambda *_: {BLOCKS: [0.0, 9.0]})
    assert settled(tiny_family, tiny_cache, tmp_path, depth=0.5)[1] == Scores(layer_scores=measured)
    assert json.loads((tmp_path / LAYER_SCORES_NAME).read_text()) == measured
    (tmp_path / LAYER_SCORES_NAME).write_text("{")
    with pytest.raises(CorruptError, match="delete it and run again"):
        settled(tiny_family, tiny_cache, tmp_path, depth=0.5)


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"blocks": [NaN]}', b'{"blocks": ["x"]}', b"\xff"])
def test_damaged_layer_scores_are_named_with_their_remedy(tiny_family, tiny_cache, tmp_path, content):
    (tmp_path / LAYER_SCORES_NAME).write_bytes(content)
    with pytest.raises(CorruptError, match=rf"{LAYER_SCORES_NAME} is corrupt .*delete it and run again"):
        settled(tiny_family, tiny_cache, tmp_path, depth=0.5)


def test_channel_scores_without_tensors_are_named_with_their_remedy(tiny_family, tiny_cache, tmp_path):
    save_file({}, tmp_path / IMPORTANCE_NAME)
    with pytest.raises(CorruptError, match=rf"{IMPORTANCE_NAME} is corrupt .*delete it and run again"):
        settled(tiny_family, tiny_cache, tmp_path, width=0.5, importance="activation")


def test_layers_are_not_scored_without_a_cache(tiny_family, tmp_path):
    assert settled(tiny_family, [], tmp_path, depth=0.5)[1] == Scores()
    assert not list(tmp_path.iterdir())
