from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import Make, assert_same_state, settings_of, state

from condistill.distill.checkpoints import list_checkpoints, save_checkpoint
from condistill.distill.failures import FAILURE_NAME, Failure, advice, fall_back, read_failure
from condistill.distill.history import HISTORY_NAME
from condistill.distill.trainer import Trainer
from condistill.errors import NonFiniteLossError


def spoil_gradient(trainer: Trainer, step: int, value: float = math.inf) -> Trainer:
    """Put one number into one gradient of a step."""

    def spoil(parameter: nn.Parameter) -> None:
        if trainer.step == step and parameter.grad is not None:
            parameter.grad[(0,) * parameter.dim()] = value

    next(trainer.trained.parameters()).register_post_accumulate_grad_hook(spoil)
    return trainer


def saved(directory: Path) -> list[str]:
    return [path.name for path in list_checkpoints(directory)]


def is_good(directory: Path) -> bool:
    return all(torch.isfinite(tensor).all() for group in state(directory).values() for tensor in group.values())


def test_weights_that_an_infinite_gradient_changed_are_never_saved(make: Make, tmp_path: Path) -> None:
    trainer = spoil_gradient(make(tmp_path, logging={"checkpoint_every": 1}), 1)
    with pytest.raises(NonFiniteLossError, match=r"the gradient of step 1 is not finite\. .*step-00000001 is good"):
        trainer.run()
    assert saved(tmp_path) == ["step-00000001"]
    assert is_good(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(("step", "kept"), [(0, []), (3, ["step-00000002"]), (5, ["step-00000004"])])
def test_an_infinite_gradient_is_found_in_every_step_and_the_last_one(
    make: Make, tmp_path: Path, step: int, kept: list[str], value: float
) -> None:
    trainer = spoil_gradient(make(tmp_path, logging={"log_every": 100}), step, value)
    with pytest.raises(NonFiniteLossError, match=rf"the gradient of step {step} is not finite"):
        trainer.run()
    assert saved(tmp_path)[-1:] == kept


@pytest.mark.slow
def test_a_learning_rate_that_destroys_the_student_leaves_no_bad_checkpoint(make: Make, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "optimizer": {"learning_rate": 1e20},
        "logging": {"checkpoint_every": 1, "keep_checkpoints": 1},
    }
    with pytest.raises(NonFiniteLossError, match=r"no good checkpoint, and step-00000001, whose weights gave this"):
        make(tmp_path, **settings).run()
    assert saved(tmp_path) == []


@pytest.mark.slow
def test_the_last_good_checkpoint_stays_until_the_next_one_has_proved_good(make: Make, tmp_path: Path) -> None:
    whole: dict[str, Any] = {"logging": {"checkpoint_every": 2, "keep_checkpoints": 1}}
    trainer = make(tmp_path, **whole)
    before: list[list[str]] = []
    trainer.run(lambda *_: before.append(saved(tmp_path)))
    first, second, third = "step-00000002", "step-00000004", "step-00000006"
    assert before == [[], [], [first], [first], [first, second], [second], [second, third]]
    assert saved(tmp_path) == [third]


@pytest.mark.slow
def test_a_training_that_failed_says_so_when_it_starts_again_and_forgets_it_once_it_has_passed(
    make: Make, tmp_path: Path
) -> None:
    make(tmp_path / "whole").run()
    with pytest.raises(NonFiniteLossError):
        spoil_gradient(make(tmp_path / "failed"), 3).run()
    assert (tmp_path / "failed" / FAILURE_NAME).is_file()
    said: list[str] = []
    again = make(tmp_path / "failed")
    again._say = said.append
    again.run()
    assert said == [
        "warning: this training failed before (the gradient of step 3 is not finite); with the same settings it may "
        "do so again"
    ]
    assert_same_state(tmp_path / "whole", tmp_path / "failed")
    assert {file.name for file in (tmp_path / "failed").iterdir()} == {*saved(tmp_path / "failed"), HISTORY_NAME}


def test_a_record_of_a_failure_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FAILURE_NAME).write_text("{")
    assert read_failure(tmp_path) is None
    assert read_failure(tmp_path / "nowhere") is None


def test_a_checkpoint_whose_weights_gave_an_infinite_loss_is_deleted_and_others_are_not(tmp_path: Path) -> None:
    for number in (2, 4):
        save_checkpoint(tmp_path, number, {"a": {"b": torch.ones(1)}})
    gradient = Failure(step=4, reason="the gradient of step 4 is not finite")
    assert fall_back(tmp_path, gradient, weights_are_bad=False) == "The checkpoint step-00000004 is good and is kept."
    loss = Failure(step=4, reason="the loss of step 4 is not finite")
    assert fall_back(tmp_path, loss, weights_are_bad=True) == (
        "The checkpoint step-00000002 is good and is kept, and step-00000004, whose weights gave this loss, is deleted."
    )
    assert read_failure(tmp_path) == loss


@pytest.mark.parametrize(
    ("changes", "step", "included", "left_out"),
    [
        ({}, 3, ["learning_rate below 0.001", "constant_with_warmup", "max_grad_norm below 1"], ["bf16", "teacher"]),
        ({"mixed_precision": "fp16"}, 3, ["mixed_precision: bf16"], []),
        ({"mixed_precision": "bf16"}, 3, [], ["mixed_precision"]),
        (
            {"optimizer": {"lr_scheduler": "cosine", "warmup_steps": 5}},
            3,
            ["more distill.optimizer.warmup_steps than 5"],
            ["lr_scheduler"],
        ),
        ({"optimizer": {"lr_scheduler": "cosine", "warmup_steps": 2}}, 3, ["learning_rate"], ["warmup"]),
        ({"optimizer": {"lr_scheduler": "linear"}}, 3, ["more distill.optimizer.warmup_steps than 0"], []),
        ({}, 0, ["the teacher or the cache is the cause", "teacher.dtype: float32"], ["learning_rate", "--update"]),
    ],
)
def test_the_advice_names_what_is_not_set_already(
    changes: dict[str, Any], step: int, included: list[str], left_out: list[str]
) -> None:
    text = advice(settings_of(**changes), step, teacher_dtype=torch.bfloat16)
    for words in included:
        assert words in text
    for words in left_out:
        assert words not in text


def test_a_float32_teacher_is_not_advised_to_be_one() -> None:
    assert "float32" not in advice(settings_of(), 0, teacher_dtype=torch.float32)


class Scaler:
    """A scaler of fp16 that skips nothing, so that the checks of a step are seen alone."""

    def state_dict(self) -> dict[str, float]:
        return {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected call")
def test_an_infinite_gradient_that_the_scaler_of_fp16_skips_is_no_failure_unless_it_stays(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path, steps=60, logging={"checkpoint_every": 100, "log_every": 100})
    trainer._update = lambda: torch.tensor(math.inf if trainer.step != 3 else 1.0)  # type: ignore[assignment]
    monkeypatch.setattr(trainer.accelerator, "scaler", Scaler())
    trainer.accelerator.backward = lambda _: None  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=r"the gradient of the last 51 steps of step 54 is not finite"):
        trainer.run()
