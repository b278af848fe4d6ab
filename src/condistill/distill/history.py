"""The losses of a training, also per tenth of the noise level. A resumed training leaves the same file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor

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

    def state(self, gather: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, with one row per process.

        Args:
            gather: joins the rows of all processes.
        """
        return {"sums": gather(self.sums[None]), "bins": gather(self.bins[None])}

    def restore(self, state: Mapping[str, Tensor], *, process: int = 0, processes: int = 1) -> None:
        """Take the row of this process of what `state` returned.

        If the number of processes has changed, the first one takes the sum of all rows.
        """
        for name, own in {"sums": self.sums, "bins": self.bins}.items():
            rows = state[name].to(own)
            if len(rows) == processes:
                own.copy_(rows[process])
            else:
                own.copy_(rows.sum(0) if process == 0 else torch.zeros_like(own))

    def truncate(self, step: int, say: Callable[[str], None] = lambda _: None) -> None:
        """Remove the lines that were written after `step` from the file, and those that cannot be read."""
        kept = [record.model_dump_json() + "\n" for record in read_history(self.file, say) if record.step <= step]
        write_text(self.file, "".join(kept))


def read_history(file: Path, say: Callable[[str], None] = lambda _: None) -> list[HistoryRecord]:
    """Return the records of a history file.

    A last line that a power loss cut off is left out, and so is a damaged line: nothing is trained again for it.

    Args:
        say: called with a line that names the damaged ones.
    """
    if not file.exists():
        return []
    records, damaged = [], []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            records.append(HistoryRecord.model_validate_json(line))
        except ValidationError:
            damaged.append(str(number))
    if damaged:
        lines = f"line {damaged[0]}" if len(damaged) == 1 else f"lines {', '.join(damaged[:6])}"
        say(
            f"warning: {len(damaged)} record(s) of {file} cannot be read ({lines}) and are left out of the curves; the "
            "student is not affected"
        )
    return records
