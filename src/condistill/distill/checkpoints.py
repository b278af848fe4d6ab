"""Checkpoints of a training as safetensors: all tensors that it continues with, and the step. No pickle.

They are written and read tensor by tensor, so that a training needs no second copy of its weights. Each has a
checksum. One that is damaged is named and removed, and the training resumes from the one before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor

from condistill.config.distill import DistillSettings
from condistill.distill.history import History
from condistill.distill.paths import Paths
from condistill.distill.prompt_choice import PromptChoice
from condistill.distill.student import StudentForward
from condistill.errors import CondistillError, CorruptError
from condistill.utils.atomic import atomic_directory, remove
from condistill.utils.distributed import from_main_process
from condistill.utils.record import RecordFile
from condistill.utils.tensor_file import TensorFile, largest, write_tensors

_STATE_NAME = "state.safetensors"
_PREFIX = "step-"
CHECKSUM_NAME = "checksum.json"

Loaded = tuple[int, Mapping[str, Mapping[str, Tensor]], Any]
"""Step, groups of named tensors, and meta of a checkpoint. A tensor is read each time it is taken from its group."""


class Checksum(RecordFile):
    """`checksum.json` of a checkpoint."""

    format: Literal[2] = 2
    bytes: int
    """Size of the file of tensors."""
    sha256: str
    """Of the file of tensors, in hexadecimal digits."""


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

    def save(self, directory: Path, step: int, accelerator: Accelerator) -> str | None:
        """Write a checkpoint from the main process. Called on every process.

        Returns:
            The name of a tensor that is not finite, for which nothing is written; None if there is none.
        """
        path_tensors, path_prompts = self.paths.state() if self.paths else ({}, [])
        history = self.history.state(accelerator.gather)

        def write() -> str | None:
            parts = {
                "trained": dict(self.trained.state_dict()),
                "optimizer": optimizer_tensors(self.optimizer),
                "history": history,
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
            if (bad := not_finite(parts)) is None:
                save_checkpoint(directory, step, parts, meta=meta)
            return bad

        return from_main_process(accelerator, write)

    def restore(self, directory: Path, accelerator: Accelerator, say: Callable[[str], None]) -> int:
        """Read the newest checkpoint that is whole, and return the number of steps done; 0 if there is none.

        Args:
            say: called on the main process with a line for each checkpoint that is damaged.
        """
        loaded: list[Loaded] = []

        def find() -> str | None:
            path, found = newest_whole(directory, say)
            loaded.extend([found] if found else [])
            return path.name if path else None

        name = from_main_process(accelerator, find)
        step = 0
        if name is not None:
            step, parts, meta = loaded.pop() if loaded else load_checkpoint(directory / name, verify=False)
            self._take(step, parts, meta, accelerator)
        if accelerator.is_main_process:
            self.history.truncate(step, say)
        return step

    def _take(self, step: int, parts: Mapping[str, Mapping[str, Tensor]], meta: Any, accelerator: Accelerator) -> None:
        _copy_into(dict(self.trained.state_dict()), parts["trained"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        self.history.restore(parts["history"], process=accelerator.process_index, processes=accelerator.num_processes)
        if self.ema is not None:
            named = zip(self._names(), self.ema.shadow_params, strict=True)
            _copy_into(dict(named), parts["ema"])
            self.ema.optimization_step = step
        if accelerator.scaler and meta["scaler"]:
            accelerator.scaler.load_state_dict(meta["scaler"])
        if self.paths:
            self.paths.restore(parts["paths"], meta["path_prompts"])
        if self.prompt_choice:
            self.prompt_choice.restore(parts.get("prompt_choice", {}))

    def _names(self) -> list[str]:
        return [name for name, _ in self.trained.denoiser.named_parameters()]


def _copy_into(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into others of the same names, which keep their device and memory layout.

    Raises:
        CondistillError: the names or the shapes differ.
    """
    names = targets.keys() ^ tensors.keys()
    names |= {name for name in targets.keys() & tensors.keys() if _shape(tensors, name) != targets[name].shape}
    if names:
        raise CondistillError(
            f"the checkpoint is of another student ({len(names)} weights differ, such as {min(names)}); "
            "delete it, or train into another directory"
        )
    with torch.no_grad():
        for name, target in targets.items():
            _read_into(tensors, name, target)


def checkpoint_bytes(settings: DistillSettings, weights: int) -> int:
    """Return the size of a checkpoint: float32 weights, two moments of AdamW for each, and their average."""
    return weights * (4 if settings.optimizer.ema_decay else 3) * torch.float32.itemsize


def checkpoints_kept(settings: DistillSettings) -> int:
    """Return how many checkpoints stay on the disk; while one is written, there is one more."""
    return min(settings.logging.keep_checkpoints, max(settings.steps // settings.logging.checkpoint_every, 1))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state of every parameter, named `<parameter index>.<state name>`."""
    tensors: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take the tensors of `optimizer_tensors`; the hyper-parameters stay those of the present recipe."""
    numbered = enumerate((parameter, group) for group in optimizer.param_groups for parameter in group["params"])
    parameters = {str(index): of_index for index, of_index in numbered}
    optimizer.state.clear()
    for key in tensors:
        index, name = key.split(".", 1)
        parameter, group = parameters[index]
        if _shape(tensors, key) == parameter.shape:
            # a fused optimiser reads memory in order: moments need the memory layout of their weights
            value = torch.empty_like(parameter, dtype=_dtype(tensors, key), requires_grad=False)
            _read_into(tensors, key, value)
        else:
            value = tensors[key]
            value = value.to(parameter.device) if group.get("fused") or group.get("capturable") else value
        optimizer.state[parameter][name] = value


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the whole checkpoints in `directory`, oldest first."""
    return sorted(path for path in directory.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal())


def written_hashes(directory: Path) -> dict[Path, str]:
    """Return the SHA-256 of the tensors of every checkpoint in `directory`, as they were written."""
    hashes = {}
    for path in list_checkpoints(directory):
        file = path / _STATE_NAME
        with suppress(CondistillError):
            written = Checksum.read(path / CHECKSUM_NAME, remedy="")
            if file.is_file() and file.stat().st_size == written.bytes:
                hashes[file] = written.sha256
    return hashes


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(path.name.removeprefix(_PREFIX))


def not_finite(parts: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """Return the name of a tensor of groups that has a NaN or an infinity; None if there is none."""
    named = {
        f"{part}/{name}": tensor
        for part, group in parts.items()
        for name, tensor in group.items()
        if tensor.is_floating_point()
    }
    devices = {tensor.device for tensor in named.values()}
    for device in devices:  # one answer for each device, since each makes the CPU wait
        names = [name for name, tensor in named.items() if tensor.device == device]
        finite = torch.stack([largest(named[name]).double() for name in names]).isfinite().cpu()
        if not finite.all():
            return names[int((~finite).nonzero()[0])]
    return None


def save_checkpoint(
    directory: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], *, keep: int | None = None, meta: Any = None
) -> Path:
    """Write `<directory>/step-<step>` whole or not at all, then delete all but the newest `keep`.

    Args:
        parts: named groups of named tensors, such as `trained`, `ema`, `optimizer`.
        keep: None: delete none.
        meta: anything that JSON can hold; `load_checkpoint` returns it.
    """
    path = directory / f"{_PREFIX}{step:08d}"
    tensors = {f"{part}/{name}": tensor for part, group in parts.items() for name, tensor in group.items()}
    with atomic_directory(path) as partial:
        file = partial / _STATE_NAME
        sha256 = write_tensors(file, tensors, metadata={"checkpoint": json.dumps({"step": step, "meta": meta})})
        Checksum(bytes=file.stat().st_size, sha256=sha256).write(partial / CHECKSUM_NAME)
    if keep is not None:
        prune_checkpoints(directory, keep)
    return path


def prune_checkpoints(directory: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for old in list_checkpoints(directory)[:-keep]:
        remove(old)


def newest_whole(directory: Path, say: Callable[[str], None]) -> tuple[Path | None, Loaded | None]:
    """Return the newest checkpoint that is whole, and its content. Damaged ones are named and removed."""
    kept = list_checkpoints(directory)
    for number, path in reversed(list(enumerate(kept))):
        try:
            return path, load_checkpoint(path)
        except CorruptError as error:
            before = f"resuming from {kept[number - 1].name}" if number else "training starts at step 0"
            say(f"warning: {error}; it is removed: {before}")
            remove(path)
    return None, None


class _Group(Mapping[str, Tensor]):
    """The tensors of one group of a checkpoint."""

    def __init__(self, file: TensorFile, part: str) -> None:
        self._file, self._prefix = file, f"{part}/"
        self._names = [name.removeprefix(self._prefix) for name in file if name.startswith(self._prefix)]

    def __getitem__(self, name: str) -> Tensor:
        return self._file[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor, which is not read."""
        return self._file.shape(self._prefix + name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor, which is not read."""
        return self._file.dtype(self._prefix + name)

    def read_into(self, name: str, target: Tensor) -> None:
        """See `TensorFile.read_into`."""
        self._file.read_into(self._prefix + name, target)


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size:
    return tensors.shape(name) if isinstance(tensors, _Group) else tensors[name].shape


def _dtype(tensors: Mapping[str, Tensor], name: str) -> torch.dtype:
    return tensors.dtype(name) if isinstance(tensors, _Group) else tensors[name].dtype


def _read_into(tensors: Mapping[str, Tensor], name: str, target: Tensor) -> None:
    """Copy a tensor; one of a checkpoint in pieces, since a second tensor of its size leaves a hole in memory."""
    if isinstance(tensors, _Group):
        tensors.read_into(name, target)
    else:
        target.copy_(tensors[name])


def load_checkpoint(path: Path, *, verify: bool = True) -> Loaded:
    """Return the step, the groups of tensors and the meta of a checkpoint.

    Args:
        verify: compare its checksum, and check that its tensors are finite; the file is read once for both.

    Raises:
        CorruptError: a file is missing, not whole or changed.
    """
    name = path / _STATE_NAME
    try:
        if verify:
            written = Checksum.read(path / CHECKSUM_NAME, remedy="it cannot be checked")
            if (size := name.stat().st_size) != written.bytes:
                raise CorruptError(f"{_STATE_NAME} has {size:,} bytes and had {written.bytes:,}")
        file = TensorFile(name)
        if verify:
            sha256, bad = file.check()
            if sha256 != written.sha256:
                raise CorruptError(f"the checksum of {_STATE_NAME} differs")
            if bad:
                raise CorruptError(f"{bad} is not finite")
        note = json.loads(file.metadata["checkpoint"])
        step, meta = int(note["step"]), note["meta"]
    except (CondistillError, FileNotFoundError, NotADirectoryError, *_NO_NOTE) as error:
        raise CorruptError(f"the checkpoint {path} is damaged ({_reason(error)})") from error
    return step, {part: _Group(file, part) for part in dict.fromkeys(key.split("/", 1)[0] for key in file)}, meta


_NO_NOTE = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a note raises that is not the one that `save_checkpoint` wrote."""


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(str(error.filename)).name if error.filename else _STATE_NAME} is missing"
    return "its note cannot be read" if isinstance(error, _NO_NOTE) else str(error)
