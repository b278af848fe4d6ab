"""Training state as safetensors: every tensor of modules, averages and optimiser, and the step. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from condistill.errors import CorruptError
from condistill.utils.atomic import atomic_directory, remove

_STATE_NAME = "state.safetensors"
_PREFIX = "step-"


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state, named `<parameter index>.<state name>`."""
    tensors: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put `optimizer_tensors` back; the hyper-parameters stay those of the present recipe."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                # a fused optimiser reads memory in the order it lies: moments must lie as their weights do
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def list_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints in `directory`, oldest first."""
    return sorted(directory.glob(f"{_PREFIX}[0-9]*"))


def save_checkpoint(
    directory: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], *, keep: int, meta: Any = None
) -> Path:
    """Write `<directory>/step-<step>` whole or not at all, then drop all but the newest `keep`.

    Args:
        parts: named groups of named tensors, such as `student`, `ema`, `optimizer`.
        meta: anything JSON can hold, given back by `load_checkpoint`.
    """
    path = directory / f"{_PREFIX}{step:08d}"
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, group in parts.items()
        for name, tensor in group.items()
    }
    with atomic_directory(path) as partial:
        # one note only: safetensors writes several in any order, and equal states shall be equal bytes
        save_file(tensors, partial / _STATE_NAME, metadata={"checkpoint": json.dumps({"step": step, "meta": meta})})
    for old in list_checkpoints(directory)[:-keep]:
        remove(old)
    return path


def load_checkpoint(path: Path) -> tuple[int, dict[str, dict[str, Tensor]], Any]:
    """Read a checkpoint: its step, its groups of tensors, its meta.

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
            f"the checkpoint {path} is corrupt ({error}); delete it, and the run goes on from the one before it"
        ) from error
    return note["step"], parts, note["meta"]
