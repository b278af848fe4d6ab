"""Samples that move: matched at a state, carried one solver step on, matched there, and so on.

One buffer of states does all of it. Started at noised cached latents and followed for k steps it is multi-step noise
matching; started at pure noise and followed to the end it is a rolling trajectory, for which no image is ever drawn.
The prediction that moves a state is the one its loss was computed from: only guidance costs another forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from condistill.config.distill import PathSettings
from condistill.distill.batches import Batch
from condistill.distill.objective import Moves
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.states import Sample, pure_noise
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import END, SolverGrid


class Paths:
    """The states of one process: `buffer` batches of S states, which take turns."""

    def __init__(
        self,
        family: Family,
        settings: PathSettings,
        conditioning: RandomConditioning,
        positions: Sequence[int],
        *,
        total_steps: int,
        with_guidance: bool = False,
    ) -> None:
        """Make a buffer in which no path has begun.

        Args:
            positions: places of the S states in the global batch, in the order of this process's micro-batches.
            total_steps: optimiser steps of the training, over which `follow: moving` moves.
            with_guidance: whether the student is told a guidance scale, which a state then keeps.
        """
        self.family, self.settings, self.conditioning, self.total_steps = family, settings, conditioning, total_steps
        self._grid = SolverGrid(family.noise, settings.num_inference_steps)
        self._positions = list(positions)
        self._on_path = on_path(positions, settings.share)
        count = (settings.buffer, len(positions))
        self.x_t = torch.zeros(*count, *family.latent_shape, device=family.device)
        self.timesteps = torch.full(count, END, dtype=self._grid.first.dtype)
        """Where the next visit is, `[buffer, S]`; -1: the path has ended."""
        self.left = torch.zeros(count, dtype=torch.long)
        """Visits until then."""
        self.prompts = [[""] * len(positions) for _ in range(settings.buffer)]
        self.guidance_scale = torch.ones(count, dtype=torch.float64) if with_guidance else None

    def place(self, step: int, rows: slice, isolated: Sample, batch: Batch) -> Sample:
        """The states of a micro-batch at a step: those on a path where they are, the others as `isolated`.

        Args:
            rows: the micro-batch's part of the S states.
            isolated: what the paper would compare at; paths from the cache begin there.
        """
        block = step % self.settings.buffer
        on_path = self._on_path[rows]
        begins = on_path & (self.timesteps[block, rows] == END)
        goes_on = on_path & ~begins
        start = isolated
        if self.settings.start == "noise" and begins.any():
            start = pure_noise(self.family, self.conditioning, batch, self._grid.first)
        self.left[block, rows] = torch.where(begins, self._lengths(step, batch), self.left[block, rows])
        prompts = [
            self.prompts[block][rows][i] if goes_on[i] else (start if begins[i] else isolated).prompts[i]
            for i in range(len(on_path))
        ]
        self.prompts[block][rows] = prompts
        scale = isolated.guidance_scale
        if self.guidance_scale is not None and scale is not None:
            scale = self.guidance_scale[block, rows] = _choose(goes_on, self.guidance_scale[block, rows], scale)
        return Sample(
            x_t=_choose(goes_on, self.x_t[block, rows], _choose(begins, start.x_t, isolated.x_t)),
            timesteps=_choose(
                goes_on, self.timesteps[block, rows], _choose(begins, start.timesteps, isolated.timesteps)
            ),
            prompts=prompts,
            replaced=goes_on | _choose(begins, start.replaced, isolated.replaced),
            x_0=isolated.x_0,
            noise=isolated.noise,
            guidance_scale=scale,
            blend=isolated.blend.where(~on_path) if isolated.blend else None,
        )

    def _lengths(self, step: int, batch: Batch) -> Tensor:
        """Visits of a path that begins now, `[S]`.

        The first paths from pure noise all begin at once: they are cut short, each somewhere else, so that from then
        on states at all noise levels are in flight.
        """
        whole = min(self.settings.steps or len(self._grid), len(self._grid))
        if self.settings.start == "noise" and step < self.settings.buffer:
            return 1 + (batch.draws.uniform * whole).long()
        return torch.full((len(batch.own),), whole)

    def moves(self, step: int, rows: slice, batch: Batch) -> Moves:
        """Which states of a micro-batch move on after a step, and by whose prediction."""
        share = {"teacher": 0.0, "student": 1.0, "moving": step / self.total_steps}[self.settings.follow]
        return Moves(self._on_path[rows], batch.draws.path_coin < share)

    def advance(self, step: int, rows: slice, sample: Sample, prediction: Tensor) -> None:
        """Carry the states of a micro-batch one solver step on, by a prediction `[S, C, h, w]`."""
        block = step % self.settings.buffer
        device, below = self.family.device, self._grid.below(sample.timesteps)
        moved = self.family.noise.step(prediction, sample.x_t, sample.timesteps.to(device), below.to(device))
        self.x_t[block, rows] = moved
        self.left[block, rows] -= 1
        goes_on = self._on_path[rows] & (self.left[block, rows] > 0)
        self.timesteps[block, rows] = torch.where(goes_on, below, END)

    def state(self, accelerator: Accelerator) -> tuple[dict[str, Tensor], list[list[str]]]:
        """What a checkpoint keeps: tensors and prompts of the states of all processes, in global order."""
        device = self.x_t.device
        places = torch.as_tensor(self._positions, device=device)
        order = accelerator.gather(places).argsort()

        def gather(mine: Tensor) -> Tensor:
            processes = accelerator.gather(mine.to(device)[None])  # [P, buffer, S, ...]
            joined: Tensor = processes.transpose(0, 1).flatten(1, 2)[:, order]
            return joined

        tensors = {"x_t": gather(self.x_t), "timesteps": gather(self.timesteps), "left": gather(self.left)}
        if self.guidance_scale is not None:
            tensors["guidance_scale"] = gather(self.guidance_scale)
        of_processes = gather_object([self.prompts])
        ordered = order.tolist()
        blocks = [[p for prompts in of_processes for p in prompts[block]] for block in range(self.settings.buffer)]
        return tensors, [[block[i] for i in ordered] for block in blocks]

    def restore(self, tensors: Mapping[str, Tensor], prompts: Sequence[Sequence[str]]) -> None:
        """Go back to what `state` gave; every process takes its own."""
        index = torch.as_tensor(self._positions)
        self.x_t = tensors["x_t"][:, index].to(self.x_t)
        self.timesteps, self.left = tensors["timesteps"][:, index], tensors["left"][:, index]
        if self.guidance_scale is not None:
            self.guidance_scale = tensors["guidance_scale"][:, index]
        self.prompts = [[block[i] for i in self._positions] for block in prompts]


def on_path(positions: Sequence[int], share: float) -> Tensor:
    """Which places of the global batch are on paths, spread evenly: bool, one per position."""
    before = torch.as_tensor(positions, dtype=torch.float64) * share + 1e-9  # a share is rarely a binary fraction
    return (before + share).floor() > before.floor()


def _choose(where: Tensor, one: Tensor, other: Tensor) -> Tensor:
    where = where.to(one.device).view(-1, *[1] * (one.dim() - 1))
    return torch.where(where, one, other)
