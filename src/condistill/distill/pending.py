"""The check that a step's losses are finite, one step late, so that the device never waits for the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from condistill.distill.states import Sample


@dataclass
class PendingLosses:
    """The losses of a step, until it is known whether they are finite."""

    step: int
    """Optimiser steps done before it."""
    losses: list[Tensor] = field(default_factory=list)
    timesteps: list[Tensor] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    _finite: Tensor | None = None
    _copied: torch.cuda.Event | None = None

    def add(self, loss: Tensor, sample: Sample) -> None:
        """Add the losses `[B]` of a micro-batch."""
        self.losses.append(loss.detach())
        self.timesteps.append(sample.timesteps)
        self.prompts += sample.prompts

    def start_check(self) -> None:
        """Start to copy the answer to the CPU, before the step's backward is queued."""
        self._finite = torch.isfinite(torch.cat(self.losses)).all().to("cpu", non_blocking=True)
        if self.losses[0].is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def is_finite(self) -> bool:
        """Wait for the answer of `start_check` and return it."""
        assert self._finite is not None
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._finite)

    def describe(self) -> str:
        """Return a sentence with the step, and timesteps and prompts of up to four samples that are not finite."""
        bad = (~torch.isfinite(torch.cat(self.losses))).nonzero().flatten().tolist()
        timesteps = torch.cat(self.timesteps).tolist()
        named = "; ".join(f"t={timesteps[i]} {self.prompts[i]!r}" for i in bad[:4])
        return f"the loss of step {self.step} is not finite for {len(bad)} sample(s): {named}."
