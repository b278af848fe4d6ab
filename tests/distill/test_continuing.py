from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training import Make, assert_same_state, settings_of, state

from condistill.config.distill import DistillSettings
from condistill.distill.continuing import CONTINUED, RESULT_FREE, may_continue

WARMUP: dict[str, Any] = {"optimizer": {"lr_scheduler": "constant_with_warmup", "warmup_steps": 5, "ema_decay": 0.9}}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"steps": 4}, {"steps": 8}, True),
        ({"steps": 8}, {"steps": 4}, False),
        ({"steps": 4}, {"steps": 8, "batch_size": 8}, False),
        ({"steps": 4}, {"steps": 8, "optimizer": {"learning_rate": 1.0}}, False),
        ({"steps": 4}, {"steps": 8, "logging": {"log_every": 7, "tracker": "tensorboard"}}, True),
        ({"steps": 4}, {"steps": 8, "micro_batch_size": 2, "gradient_checkpointing": True}, True),
        ({"steps": 4, **WARMUP}, {"steps": 8, **WARMUP}, True),
        ({"steps": 4}, {"steps": 4, "logging": {"log_every": 7}}, True),
        ({"steps": 4}, {"steps": 8, "preview_every": 2}, True),
    ],
)
def test_a_training_continues_with_more_steps_only(old: dict[str, Any], new: dict[str, Any], expected: bool) -> None:
    assert may_continue(settings_of(**old), settings_of(**new)) is expected


@pytest.mark.parametrize(
    "both",
    [
        {"optimizer": {"lr_scheduler": "cosine"}},
        {"optimizer": {"lr_scheduler": "linear", "warmup_steps": 2}},
        {"path": {"start": "noise", "follow": "moving"}},
    ],
)
def test_what_depends_on_the_last_step_starts_again(both: dict[str, Any]) -> None:
    assert not may_continue(settings_of(steps=4, **both), settings_of(steps=8, **both))
    assert may_continue(settings_of(steps=4, **both), settings_of(steps=4, **both))


def test_every_setting_has_been_judged() -> None:
    """A new setting of a training belongs to `CONTINUED`, to `RESULT_FREE`, or below: it starts a training again."""
    again = {"batch_size", "mixed_precision", "conditioning", "loss", "optimizer", "path", "few_steps"}
    again |= {"guidance_distillation"}
    assert set(DistillSettings.model_fields) | {"save_dtype"} == again | set(CONTINUED) | set(RESULT_FREE)


CASES: dict[str, dict[str, Any]] = {
    "constant": {"optimizer": {"ema_decay": 0.9}},
    "warm-up": WARMUP,
    "path": {"path": {"start": "noise", "follow": "student", "share": 0.5, "num_inference_steps": 3}},
    "few steps": {
        "few_steps": {"method": "consistency", "num_inference_steps": 2, "solver_steps": 10},
        "loss": {"feature_weight": 0.0},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_four_steps_and_then_eight_are_eight_steps_bit_for_bit(make: Make, tmp_path: Path, case: str) -> None:
    settings = CASES[case]
    whole = make(tmp_path / "whole", steps=8, **settings).run()
    assert may_continue(settings_of(steps=4, **settings), settings_of(steps=8, **settings))
    make(tmp_path / "cut", steps=4, **settings).run()
    longer = make(tmp_path / "cut", steps=8, **settings).run()
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, longer.state_dict()[name]), name


@pytest.mark.slow
def test_a_record_of_losses_at_the_former_end_changes_no_weight(make: Make, tmp_path: Path) -> None:
    rare = {"logging": {"log_every": 3}}
    make(tmp_path / "whole", steps=8, **rare).run()
    make(tmp_path / "cut", steps=4, **rare).run()
    make(tmp_path / "cut", steps=8, **rare).run()
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    for part in ("trained", "ema", "optimizer"):
        assert all(torch.equal(tensor, cut[part][name]) for name, tensor in whole[part].items())
