"""Parts of tiny trainings for the tests of `distill`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.config.yaml_tree import merge
from condistill.distill.checkpoints import list_checkpoints, load_checkpoint
from condistill.distill.history import HISTORY_NAME
from condistill.distill.objective import Losses, Objective
from condistill.distill.states import Sample
from condistill.distill.trainer import Trainer

SEED = 11


Make = Callable[..., Trainer]


class RecordingAccelerator(Accelerator):
    """Keeps the gradients of the last step from before clipping."""

    gradients: list[Tensor]

    def clip_grad_norm_(self, parameters: Iterator[nn.Parameter], *args: Any, **kwargs: Any) -> Any:
        parameters = list(parameters)
        self.gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        return super().clip_grad_norm_(parameters, *args, **kwargs)


def settings_of(**changes: Any) -> DistillSettings:
    base = {
        "steps": 6,
        "batch_size": 4,
        "optimizer": {"learning_rate": 1e-3},
        "logging": {"checkpoint_every": 2, "log_every": 1},
    }
    return DistillSettings.model_validate(merge(base, changes))


def state(directory: Path) -> dict[str, dict[str, Tensor]]:
    """Return all tensors of the newest checkpoint."""
    return load_checkpoint(list_checkpoints(directory)[-1])[1]


def assert_same_state(one: Path, other: Path) -> None:
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    assert first.keys() >= {"trained", "optimizer", "history", "ema"}
    for part, group in first.items():
        assert group.keys() == second[part].keys()
        for name, tensor in group.items():
            assert torch.equal(tensor, second[part][name]), f"{part}/{name}"
    assert (one / HISTORY_NAME).read_bytes() == (other / HISTORY_NAME).read_bytes()


def stop_after(step: int, error: type[BaseException] = RuntimeError) -> Callable[..., None]:
    def on_step(done: int, _record: Any) -> None:
        if done == step:
            raise error

    return on_step


PROMPTS = ["a red ball", "", "a blue box", "a star"]


def sample_at(timesteps: list[int]) -> Sample:
    noise = torch.randn(len(timesteps), 4, 8, 8, generator=torch.Generator().manual_seed(3))
    replaced = torch.zeros(len(timesteps), dtype=torch.bool)
    return Sample(noise, torch.tensor(timesteps), PROMPTS[: len(timesteps)], replaced, noise, noise)


class Fixed:
    """A student with a fixed prediction."""

    def __init__(self, prediction: Tensor) -> None:
        self.prediction = prediction

    def __call__(self, *_: Any) -> tuple[Tensor, list[Tensor]]:
        return self.prediction, []


def losses(objective: Objective, model: Any, sample: Sample) -> Losses:
    return objective.losses(objective.compare(model, sample))
