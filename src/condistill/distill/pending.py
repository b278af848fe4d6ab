"""The checks of a step, answered one step late, so that the device never waits for the CPU.

All processes get the same answers: whether a loss of any of them is not finite, and whether any of them got a signal,
are reduced while the gradients are; the norm of the gradients is the same everywhere already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from condistill.distill.states import Sample


@dataclass
class PendingStep:
    """The losses of a step and the norm of its gradients, until it is known whether they are finite."""

    step: int
    """Optimiser steps done before it."""
    losses: list[Tensor] = field(default_factory=list)
    timesteps: list[Tensor] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    _flags: Tensor | None = None
    """Whether a loss is not finite, and the number of a signal; the largest of all processes."""
    _reduced: Any = None
    _answers: Tensor | None = None
    """The flags and the norm, on the CPU."""
    _copied: torch.cuda.Event | None = None

    def add(self, loss: Tensor, sample: Sample) -> None:
        """Add the losses `[B]` of a micro-batch."""
        self.losses.append(loss.detach())
        self.timesteps.append(sample.timesteps)
        self.prompts += sample.prompts

    def start_check(self, *, signal: int = 0, processes: int = 1) -> None:
        """Start to reduce the flags over the processes, before the step's backward is queued.

        Args:
            signal: the number of the signal that this process got; 0: none.
        """
        bad = ~torch.isfinite(torch.cat(self.losses)).all()
        self._flags = torch.stack([bad.float(), torch.full_like(bad, signal, dtype=torch.float32)])
        if processes > 1:
            import torch.distributed as dist

            self._reduced = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, async_op=True)

    def finish(self, norm: Tensor) -> None:
        """Start to copy the answers to the CPU, after the step's update is queued.

        Args:
            norm: of all gradients together, before they were clipped.
        """
        assert self._flags is not None
        if self._reduced is not None:
            self._reduced.wait()  # on a GPU, a wait of the device
        self._answers = torch.cat([self._flags, norm.detach().float().reshape(1)]).to("cpu", non_blocking=True)
        if self._flags.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def _answer(self, index: int) -> float:
        """Wait for the answers, and return one."""
        assert self._answers is not None
        if self._copied is not None:
            self._copied.synchronize()
        return self._answers[index].item()

    @property
    def loss_is_finite(self) -> bool:
        """Whether the losses of all processes are finite."""
        return self._answer(0) == 0

    @property
    def signal(self) -> int:
        """The number of the signal that a process got; 0: none."""
        return int(self._answer(1))

    @property
    def norm_is_finite(self) -> bool:
        """Whether the gradients are finite."""
        return math.isfinite(self._answer(2))

    def describe(self) -> list[str]:
        """Return timestep and prompt of each sample of this process whose loss is not finite."""
        bad = (~torch.isfinite(torch.cat(self.losses))).nonzero().flatten().tolist()
        timesteps = torch.cat(self.timesteps).tolist()
        return [f"t={timesteps[i]} {self.prompts[i]!r}" for i in bad]
