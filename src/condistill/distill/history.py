"""The losses of a training, also per tenth of the noise level. A resumed training leaves the same file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor

from condistill.errors import CondistillError
from condistill.utils.atomic import write_text
from condistill.utils.record import Record

BINS = 10
HISTORY_NAME = "history.jsonl"


class HistoryRecord(Record):
    """One line of `history.jsonl`: means over the samples since the line before."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    format: Literal[2] = 2
    step: int
    """Optimiser steps done."""
    learning_rate: float
    loss: float
    """The weighted sum of the terms."""
    terms: dict[str, float]
    """Every active loss term by name, without its weight."""
    replaced_prompt: float
    """Share of samples without a true target: the prompt is not the latent's, or the state has moved on a path."""
    bins: tuple[float | None, ...]
    """Output loss per tenth of the noise level, lowest first; None for tenths without a sample."""

    def scalars(self) -> dict[str, float]:
        """Return the numbers that a tracker plots."""
        return {
            "learning_rate": self.learning_rate,
            "loss": self.loss,
            **self.terms,
            "replaced_prompt": self.replaced_prompt,
        }


class History:
    """Sums of losses on the device, written as means every few steps."""

    def __init__(self, file: Path, device: torch.device, terms: Sequence[str]) -> None:
        """Start with sums of 0; `terms` are the names of the active loss terms."""
        self.file = file
        self.terms = list(terms)
        self.sums = torch.zeros(len(self.terms) + 3, device=device, dtype=torch.float64)
        """Number of samples, loss, samples without a true target, then every term."""
        self.bins = torch.zeros(2, BINS, device=device, dtype=torch.float64)
        """Output loss and number of samples per tenth of the noise level."""

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], replaced: Tensor, noise_level: Tensor) -> None:
        """Add B samples; every argument, and every term, is `[B]`."""
        ones = torch.ones_like(loss, dtype=torch.float64)
        values = [ones, loss, replaced, *(terms[name] for name in self.terms)]
        self.sums += torch.stack([value.detach().double().sum() for value in values])
        tenths = (noise_level * BINS).long().clamp(0, BINS - 1)
        self.bins[0].index_add_(0, tenths, terms["output"].detach().double())
        self.bins[1].index_add_(0, tenths, ones)

    def flush(
        self, step: int, learning_rate: float, *, reduce: Callable[[Tensor], Tensor], write: bool
    ) -> HistoryRecord:
        """Return the means since the last flush, and write them to the file if `write`.

        Args:
            reduce: sums a tensor over all processes.
        """
        sums, bins = reduce(self.sums).cpu(), reduce(self.bins).cpu()
        loss, replaced_prompt, *terms = (sums[1:] / sums[0]).tolist()
        record = HistoryRecord(
            step=step,
            learning_rate=learning_rate,
            loss=loss,
            terms=dict(zip(self.terms, terms, strict=True)),
            replaced_prompt=replaced_prompt,
            bins=tuple((total / count).item() if count else None for total, count in bins.T),
        )
        self.sums.zero_()
        self.bins.zero_()
        if write:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(record.model_dump_json() + "\n")
        return record

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        return {"sums": self.sums, "bins": self.bins}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors that `state` returned."""
        self.sums.copy_(state["sums"])
        self.bins.copy_(state["bins"])

    def truncate(self, step: int) -> None:
        """Remove the lines that were written after `step` from the file."""
        kept = [record.model_dump_json() + "\n" for record in read_history(self.file) if record.step <= step]
        write_text(self.file, "".join(kept))


def read_history(file: Path) -> list[HistoryRecord]:
    """Return the records of a history file. A last line that a power loss cut off is left out.

    Raises:
        CondistillError: a line is not a record of this format.
    """
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            records.append(HistoryRecord.model_validate_json(line))
        except ValidationError as error:
            raise CondistillError(
                f"line {number} of {file} is not a record of format {HistoryRecord.model_fields['format'].default}; "
                "delete the file's directory and train again"
            ) from error
    return records
