"""Checkpoints of a training as safetensors: all tensors that it continues with, and the step. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from condistill.distill.history import History
from condistill.distill.paths import Paths
from condistill.distill.prompt_choice import PromptChoice
from condistill.distill.student import StudentForward
from condistill.errors import CorruptError
from condistill.utils.atomic import atomic_directory, remove

_STATE_NAME = "state.safetensors"
_PREFIX = "step-"


@dataclass
class TrainingState:
    """Everything that a resumed training continues with, besides its number of steps."""

    trained: StudentForward
    optimizer: torch.optim.Optimizer
    """As it was before the accelerator wrapped it."""
    ema: EMAModel | None
    history: History
    paths: Paths | None
    prompt_choice: PromptChoice | None

    def save(self, directory: Path, step: int, accelerator: Accelerator, *, keep: int) -> None:
        """Write a checkpoint from the main process, and keep the newest `keep`. Called on every process."""
        path_tensors, path_prompts = self.paths.state() if self.paths else ({}, [])
        if accelerator.is_main_process:
            parts = {
                "trained": dict(self.trained.state_dict()),
                "optimizer": optimizer_tensors(self.optimizer),
                "history": self.history.state(),
            }
            scaler = accelerator.scaler
            meta: dict[str, Any] = {"scaler": scaler.state_dict() if scaler else None}
            if self.ema is not None:
                parts["ema"] = dict(zip(self._names(), self.ema.shadow_params, strict=True))
            if self.paths:
                parts["paths"] = path_tensors
                meta["path_prompts"] = path_prompts
            if self.prompt_choice:
                parts["prompt_choice"] = self.prompt_choice.state()
            save_checkpoint(directory, step, parts, keep=keep, meta=meta)
        accelerator.wait_for_everyone()

    def restore(self, directory: Path, accelerator: Accelerator) -> int:
        """Read the newest checkpoint, if there is one, and return the number of steps done."""
        kept = list_checkpoints(directory)
        step = 0
        if kept:
            step, parts, meta = load_checkpoint(kept[-1])
            self._take(step, parts, meta, accelerator)
        if accelerator.is_main_process:
            self.history.truncate(step)
        return step

    def _take(self, step: int, parts: Mapping[str, Mapping[str, Tensor]], meta: Any, accelerator: Accelerator) -> None:
        self.trained.load_state_dict(parts["trained"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        self.history.restore(parts["history"])
        if self.ema is not None:
            named = zip(self._names(), self.ema.shadow_params, strict=True)
            self.ema.shadow_params = [parts["ema"][name].to(shadow) for name, shadow in named]
            self.ema.optimization_step = step
        if accelerator.scaler and meta["scaler"]:
            accelerator.scaler.load_state_dict(meta["scaler"])
        if self.paths:
            self.paths.restore(parts["paths"], meta["path_prompts"])
        if self.prompt_choice:
            self.prompt_choice.restore(parts.get("prompt_choice", {}))

    def _names(self) -> list[str]:
        return [name for name, _ in self.trained.denoiser.named_parameters()]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state of every parameter, named `<parameter index>.<state name>`."""
    tensors: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take the tensors of `optimizer_tensors`; the hyper-parameters stay those of the present recipe."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                # a fused optimiser reads memory in order: moments need the memory layout of their weights
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the whole checkpoints in `directory`, oldest first."""
    return sorted(directory.glob(f"{_PREFIX}[0-9]*"))


def save_checkpoint(
    directory: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], *, keep: int, meta: Any = None
) -> Path:
    """Write `<directory>/step-<step>` whole or not at all, then delete all but the newest `keep`.

    Args:
        parts: named groups of named tensors, such as `trained`, `ema`, `optimizer`.
        meta: anything that JSON can hold; `load_checkpoint` returns it.
    """
    path = directory / f"{_PREFIX}{step:08d}"
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, group in parts.items()
        for name, tensor in group.items()
    }
    with atomic_directory(path) as partial:
        # one entry only: safetensors writes several in any order, and equal states must give equal bytes
        save_file(tensors, partial / _STATE_NAME, metadata={"checkpoint": json.dumps({"step": step, "meta": meta})})
    for old in list_checkpoints(directory)[:-keep]:
        remove(old)
    return path


def load_checkpoint(path: Path) -> tuple[int, dict[str, dict[str, Tensor]], Any]:
    """Return the step, the groups of tensors and the meta of a checkpoint.

    Raises:
        CorruptError: its file is missing or not whole.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path / _STATE_NAME, framework="pt") as file:
            note = json.loads(file.metadata()["checkpoint"])
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                part, name = key.split("/", 1)
                parts.setdefault(part, {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CorruptError(
            f"the checkpoint {path} is corrupt ({error}); delete it, and the run resumes from the one before it"
        ) from error
    return note["step"], parts, note["meta"]
