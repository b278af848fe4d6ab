"""States that move: the models are compared at a state, a solver step carries it on, they are compared again.

One buffer of states serves every kind of path. Started at noised cached latents and followed for k steps, it is
multi-step noise matching; started at pure noise and followed to the end, it is a rolling trajectory, which needs no
image. The prediction that moves a state is the one that its loss was computed from, so only guidance costs another
forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from condistill.config.distill import DistillSettings
from condistill.distill.batches import Batch
from condistill.distill.loss_terms import Comparison
from condistill.distill.random_conditioning import RandomConditioning
from condistill.distill.states import Sample, Visit, pure_noise
from condistill.teachers.aside import encode_aside
from condistill.teachers.family import Family
from condistill.teachers.noise.grid import END, SolverGrid
from condistill.utils.transfer import on_device


class Paths:
    """The moving states of one process: `buffer` blocks of S states, which are visited in turn."""

    def __init__(
        self,
        family: Family,
        settings: DistillSettings,
        conditioning: RandomConditioning,
        *,
        positions: Sequence[int],
        student: nn.Module,
        accelerator: Accelerator,
    ) -> None:
        """Make a buffer in which no path has started.

        Args:
            positions: positions in the global batch of the S states, in the order of this process's micro-batches.
            student: the student's denoiser.
        """
        assert settings.path is not None
        self.family, self.settings, self.conditioning = family, settings.path, conditioning
        self._total_steps, self._student, self._accelerator = settings.steps, student, accelerator
        self._grid = SolverGrid(family.noise, self.settings.num_inference_steps)
        self._positions = list(positions)
        self._on_path = on_path(positions, self.settings.share)
        count = (self.settings.buffer, len(positions))
        self.x_t = torch.zeros(*count, *family.latent_shape, device=family.device)
        self.timesteps = torch.full(count, END, dtype=self._grid.first.dtype)
        """Timestep of the next visit, `[buffer, S]`; -1: the path has ended."""
        self.left = torch.zeros(count, dtype=torch.long)
        """Visits until the path ends, `[buffer, S]`."""
        self.prompts = [[""] * len(positions) for _ in range(self.settings.buffer)]
        self.guidance_scale = torch.ones(count, dtype=torch.float64) if settings.guidance_range else None

    def place(self, step: int, rows: slice, isolated: Sample, batch: Batch) -> Sample:
        """Return the states of a micro-batch: states on a path as the path left them, the others as in `isolated`.

        Args:
            rows: the micro-batch's part of the S states.
            isolated: states off any path; paths from the cache start at them.
        """
        block = step % self.settings.buffer
        on_path = self._on_path[rows]
        starts = on_path & (self.timesteps[block, rows] == END)
        continues = on_path & ~starts
        start = isolated
        if self.settings.start == "noise" and starts.any():
            start = pure_noise(self.family, self.conditioning, batch, self._grid.first)
        self.left[block, rows] = torch.where(starts, self._lengths(step, batch), self.left[block, rows])
        prompts = [
            self.prompts[block][rows][i] if continues[i] else (start if starts[i] else isolated).prompts[i]
            for i in range(len(on_path))
        ]
        self.prompts[block][rows] = prompts
        scale = isolated.guidance_scale
        if self.guidance_scale is not None and scale is not None:
            scale = self.guidance_scale[block, rows] = _choose(continues, self.guidance_scale[block, rows], scale)
        return replace(
            isolated,
            x_t=_choose(continues, self.x_t[block, rows], _choose(starts, start.x_t, isolated.x_t)),
            timesteps=_choose(
                continues, self.timesteps[block, rows], _choose(starts, start.timesteps, isolated.timesteps)
            ),
            prompts=prompts,
            replaced=continues | _choose(starts, start.replaced, isolated.replaced),
            guidance_scale=scale,
            blend=isolated.blend.where(~on_path) if isolated.blend else None,
            visit=Visit(block, rows, on_path, by_student=batch.draws.path_coin < self._student_share(step)),
        )

    def advance(self, comparison: Comparison) -> None:
        """Carry the states of a sample that `place` returned one solver step on, by the followed predictions."""
        sample, visit = comparison.sample, comparison.sample.visit
        assert visit is not None
        index = (visit.block, visit.rows)
        device, below = self.family.device, self._grid.below(sample.timesteps)
        direction = self._direction(comparison, visit)
        timesteps = on_device(sample.timesteps, device)
        moved = self.family.noise.step(direction, sample.x_t, timesteps, on_device(below, device))
        self.x_t[index] = moved
        self.left[index] -= 1
        continues = visit.on_path & (self.left[index] > 0)
        self.timesteps[index] = torch.where(continues, below, END)

    @torch.no_grad()
    def _direction(self, comparison: Comparison, visit: Visit) -> Tensor:
        """Return the prediction `[B, C, h, w]` that moves each state: the followed model's, guided."""
        guidance_scale = self.settings.guidance_scale
        by_student = on_device(visit.by_student, self.family.device).view(-1, 1, 1, 1)
        direction = torch.where(by_student, comparison.student, comparison.teacher)
        if guidance_scale == 1:
            return direction
        if comparison.teacher_unconditional is not None and comparison.student_unconditional is not None:
            unconditional = torch.where(by_student, comparison.student_unconditional, comparison.teacher_unconditional)
            return unconditional + guidance_scale * (direction - unconditional)
        followed = ((self.family.denoiser, ~visit.by_student), (self._student, visit.by_student))
        for denoiser, is_followed in followed:
            rows = (visit.on_path & is_followed).nonzero().flatten()
            if len(rows):
                unconditional = self._unconditional(denoiser, comparison.sample, rows)
                index = on_device(rows, direction.device)
                direction[index] = unconditional + guidance_scale * (direction[index] - unconditional)
        return direction

    def _unconditional(self, denoiser: nn.Module, sample: Sample, rows: Tensor) -> Tensor:
        family = self.family
        with self._accelerator.autocast():
            timesteps = on_device(sample.timesteps[rows], family.device)
            x_t = sample.x_t[on_device(rows, family.device)]
            return family.predict(denoiser, x_t, timesteps, encode_aside(family, [""] * len(rows)))

    def _lengths(self, step: int, batch: Batch) -> Tensor:
        """Return the number of visits of paths that start now, `[B]`.

        The first paths from pure noise all start at once. They are cut to different lengths, so that later the buffer
        has states at all noise levels.
        """
        whole = min(self.settings.steps or len(self._grid), len(self._grid))
        if self.settings.start == "noise" and step < self.settings.buffer:
            return 1 + (batch.draws.uniform * whole).long()
        return torch.full((len(batch.random_prompts),), whole)

    def _student_share(self, step: int) -> float:
        """Return the share of states that follow the student at a step."""
        return {"teacher": 0.0, "student": 1.0, "moving": step / self._total_steps}[self.settings.follow]

    def state(self) -> tuple[dict[str, Tensor], list[list[str]]]:
        """Return tensors and prompts of the states of all processes, in global order, for a checkpoint."""
        accelerator, device = self._accelerator, self.x_t.device
        order = accelerator.gather(torch.as_tensor(self._positions, device=device)).argsort()

        def gather(tensor: Tensor) -> Tensor:
            processes = accelerator.gather(tensor.to(device)[None])  # [P, buffer, S, ...]
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
        """Take this process's part of what `state` returned."""
        index = torch.as_tensor(self._positions)
        self.x_t = tensors["x_t"][:, index].to(self.x_t)
        self.timesteps, self.left = tensors["timesteps"][:, index], tensors["left"][:, index]
        if self.guidance_scale is not None:
            self.guidance_scale = tensors["guidance_scale"][:, index]
        self.prompts = [[block[i] for i in self._positions] for block in prompts]


def on_path(positions: Sequence[int], share: float) -> Tensor:
    """Return which positions of the global batch are on paths, spread evenly: bool, one per position."""
    before = torch.as_tensor(positions, dtype=torch.float64) * share + 1e-9  # a share is rarely a binary fraction
    return (before + share).floor() > before.floor()


def _choose(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    mask = on_device(mask, chosen.device).view(-1, *[1] * (chosen.dim() - 1))
    return torch.where(mask, chosen, other)
