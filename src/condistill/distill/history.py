"""Losses over training, per tenth of the noise level: what the report plots. A resumed run leaves the same file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condistill.utils.atomic import write_text

BINS = 10
HISTORY_NAME = "history.jsonl"
_TERMS = ("loss", "output", "feature", "task", "guidance", "replaced_prompt")


class History:
    """Sums on the device, written as means every so many steps."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self.file = file
        self.sums = torch.zeros(len(_TERMS) + 1, device=device, dtype=torch.float64)
        """One per term, then the number of samples."""
        self.bins = torch.zeros(2, BINS, device=device, dtype=torch.float64)
        """Output loss and number of samples per tenth of the noise level."""

    def add(self, terms: dict[str, Tensor], noise_level: Tensor) -> None:
        """Count B samples: each term `[B]`."""
        values = [terms[name].detach().double().sum() for name in _TERMS]
        values.append(torch.tensor(float(len(noise_level)), dtype=torch.float64, device=self.sums.device))
        self.sums += torch.stack(values)
        index = (noise_level * BINS).long().clamp(0, BINS - 1)
        output = terms["output"].detach().double()
        self.bins[0].index_add_(0, index, output)
        self.bins[1].index_add_(0, index, torch.ones_like(output))

    def flush(
        self, step: int, learning_rate: float, *, reduce: Callable[[Tensor], Tensor], write: bool
    ) -> dict[str, Any]:
        """Write the means since the last flush; `reduce` sums over processes."""
        sums, bins = reduce(self.sums).cpu(), reduce(self.bins).cpu()
        record: dict[str, Any] = {"step": step, "learning_rate": learning_rate}
        record |= {name: (sums[i] / sums[-1]).item() for i, name in enumerate(_TERMS)}
        record["bins"] = [(total / n).item() if n else None for total, n in bins.T]
        self.sums.zero_()
        self.bins.zero_()
        if write:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        return record

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"sums": self.sums, "bins": self.bins}

    def restore(self, state: dict[str, Tensor], step: int, *, write: bool) -> None:
        """Go back to a checkpoint: forget what was written after it."""
        self.sums.copy_(state["sums"])
        self.bins.copy_(state["bins"])
        if write:
            kept = [json.dumps(record) + "\n" for record in read_history(self.file) if record["step"] <= step]
            write_text(self.file, "".join(kept))


def read_history(file: Path) -> list[dict[str, Any]]:
    """The records of a history file; a last line cut off by a power loss is left out."""
    if not file.exists():
        return []
    records = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            records.append(json.loads(line))
    return records


_FILE_NAME = "seconds.json"


class Stopwatch:
    """Seconds of a training up to its last checkpoint, over all the runs it took."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _FILE_NAME
        self._began: float | None = None

    def on_step(self, step: int, *, checkpoint: bool) -> None:
        """Call before the first step, and after each with whether a checkpoint was made of it."""
        now = time.monotonic()
        if self._began is None:
            self._began = now - train_sec(self._file.parent, step)
        if checkpoint:
            write_text(self._file, json.dumps({"step": step, "train_sec": now - self._began}) + "\n")


def train_sec(directory: Path, step: int) -> float:
    """Seconds noted in a directory by a `Stopwatch` that had come no further than `step`; 0 where there are none."""
    file = directory / _FILE_NAME
    if not file.is_file():
        return 0.0
    noted = json.loads(file.read_text(encoding="utf-8"))
    return float(noted["train_sec"]) if noted["step"] <= step else 0.0
