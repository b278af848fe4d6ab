from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from forked import quick_python
from processes import CPU, TORCHRUN, distill, write_recipe
from rich.console import Console
from torch import nn

from condistill.config.recipe import Recipe
from condistill.distill.student import StudentForward
from condistill.distill.tracking import state_of_its_own, tracked

stage = importlib.import_module("condistill.distill.stage")
compress = importlib.import_module("condistill.workflow.compress").compress


def test_the_scaler_of_fp16_starts_anew_for_every_variant() -> None:
    freed: list[int] = []
    first = torch.amp.GradScaler("cpu", init_scale=16.0)
    accelerator = SimpleNamespace(scaler=first, free_memory=lambda: freed.append(1))
    with state_of_its_own(accelerator):
        assert accelerator.scaler is first
        first.scale(torch.ones(1))
        first.update(2.0)
    assert accelerator.scaler is not first
    assert accelerator.scaler.get_scale() == 16.0
    with pytest.raises(RuntimeError), state_of_its_own(accelerator):
        raise RuntimeError
    assert len(freed) == 2


def test_no_tracker_is_no_tracker() -> None:
    with tracked(SimpleNamespace(), "none", "a"):  # type: ignore[arg-type]
        pass


def live(kind: type[Any]) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


@pytest.mark.slow
def test_nothing_of_a_finished_variant_stays_alive(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (torch.optim.AdamW, StudentForward)
    before = [live(kind) for kind in kinds]  # of other tests
    seen: list[list[int]] = []

    class Watched(stage.Trainer):  # type: ignore[misc,name-defined]
        def run(self, on_step: Callable[..., None]) -> nn.Module:
            seen.append([live(kind) - count for kind, count in zip(kinds, before, strict=True)])
            trained: nn.Module = super().run(on_step)
            return trained

    monkeypatch.setattr(stage, "Trainer", Watched)
    variants: dict[str, Any] = {name: {} for name in "abc"}
    file = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts, variants=variants)
    compress(Recipe.load(file), tmp_path / "run", until="distill", console=Console(quiet=True))
    assert seen == [[1, 1]] * 3
    assert [live(kind) for kind in kinds] == before


def logged(folder: Path) -> dict[int, float]:
    """Return the losses of a folder of TensorBoard by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["one process", "two processes"])
def test_every_variant_has_its_own_values_in_the_tracker(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    logging = {"checkpoint_every": 2, "log_every": 1, "tracker": "tensorboard"}
    file = write_recipe(tmp_path, tiny_pipeline_dir, tiny_prompts, logging=logging)
    histories, _ = distill(file, *launcher, environment=CPU, python=quick_python())
    tracker = tmp_path / f"run{len(launcher)}" / "tracker"
    for name, records in histories.items():
        assert len(records) == 4
        assert logged(tracker / name) == pytest.approx({record.step: record.loss for record in records})


@pytest.mark.slow
def test_the_accelerator_can_be_used_after_a_variant(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    for number, name in enumerate("ab"):
        with tracked(accelerator, "tensorboard", name):
            accelerator.log({"loss": float(number)}, step=number)
    assert accelerator.trackers == []
    assert [logged(tmp_path / name) for name in "ab"] == [{0: 0.0}, {1: 1.0}]
