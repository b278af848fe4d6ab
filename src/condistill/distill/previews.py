"""Previews: images of the student during its training, below its teacher's of the same prompts from the same noise.

They are cheap, with few prompts and few steps, and they change nothing: the training continues with the same weights
and random states as without them, to the last bit, and its time does not count them.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from condistill.config.distill import DistillSettings
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling
from condistill.teachers.family import Family
from condistill.utils.atomic import atomic_file
from condistill.utils.randomness import Stream, image_noise, image_seed
from condistill.utils.record import Record, RecordFile
from condistill.utils.weights import is_cast

PREVIEW_PROMPTS, QUICK_PROMPTS = 2, 1
"""Prompts of each split, and those in a quick run."""
PREVIEW_STEPS = 8
"""Sampling steps, unless the model is trained for a number of its own, or samples in fewer."""
FOLDER_NAME = "previews"
RECORD_NAME = "previews.json"
_TEACHER_NAME = "teacher.png"
_PARTS = 10
_LARGEST_SIDE = 256
_GAP = 4
"""Pixels between the images of a grid."""


class _PreviewSteps(Sequence[int]):
    """0, every n-th step and the last, without a list of them: a training may have a billion steps."""

    def __init__(self, every: int, last: int) -> None:
        self._before_last, self._last = range(0, last, every), last

    def __len__(self) -> int:
        return len(self._before_last) + 1

    def __contains__(self, step: object) -> bool:
        return step == self._last or step in self._before_last

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index += len(self) if index < 0 else 0
        return self._last if index == len(self) - 1 else self._before_last[index]


def preview_prompts(*, quick: bool) -> int:
    """Return how many prompts of each split a preview shows."""
    return QUICK_PROMPTS if quick else PREVIEW_PROMPTS


def preview_steps(settings: DistillSettings, *, quick: bool = False) -> Sequence[int]:
    """Return the numbers of optimiser steps after which a preview is made, in ascending order.

    Args:
        quick: whether the run is a test of the set-up, which has previews at the start and at the end only by default.
    """
    steps, every = settings.steps, settings.preview_every
    if every == 0:
        return []
    if every is None:
        every = steps if quick else math.ceil(steps / _PARTS)
    return _PreviewSteps(every, steps)


class PreviewPrompt(Record):
    """A prompt of the previews, and the split that it belongs to."""

    split: str
    prompt: str


class PreviewRecord(RecordFile):
    """`previews.json`: how the grids of a folder were made."""

    format: Literal[1] = 1
    prompts: tuple[PreviewPrompt, ...]
    """One column each."""
    height: int
    width: int
    """Of one image of a grid, in pixels."""
    num_inference_steps: int
    """Of the student."""
    guidance_scale: float


class PreviewFolder:
    """The grids of one training: a column per prompt, the teacher's images above the student's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, step: int) -> Path:
        """Return the path of the grid after a number of steps."""
        return self.path / f"step-{step:06d}.png"

    def grids(self) -> dict[int, Path]:
        """Return the grids that exist, by their number of steps, in order."""
        found = {}
        for path in self.path.glob("step-*.png"):
            if (number := path.stem.removeprefix("step-")).isdecimal():
                found[int(number)] = path
        return dict(sorted(found.items()))

    def record(self) -> PreviewRecord | None:
        """Return how the grids were made; None where it is not known."""
        try:
            return PreviewRecord.read(self.path / RECORD_NAME, remedy="")
        except (CondistillError, OSError):
            return None

    def rows(self, step: int) -> tuple[list[Image.Image], list[Image.Image]] | None:
        """Return the images of the teacher and of the student; None where the grid is missing or damaged."""
        record = self.record()
        if record is None:
            return None
        try:
            with Image.open(self.file(step)) as opened:
                grid = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError):  # a SyntaxError is a damaged PNG
            return None
        if grid.size != _grid_size(record, rows=2):
            return None
        teacher, student = (_cut(grid, record, row) for row in range(2))
        return teacher, student


@dataclass(frozen=True)
class PreviewModels:
    """How teacher and student are sampled in previews."""

    teacher: Sampling
    student: Sampling

    @classmethod
    def of(cls, teacher: Sampling, student: Sampling) -> PreviewModels:
        """Return the sampling of finished models with fewer steps, where they were not trained for a number."""
        return cls(*(_cheap(sampling) for sampling in (teacher, student)))


class Previews:
    """Makes the previews of one training."""

    def __init__(
        self,
        family: Family,
        directory: Path,
        models: PreviewModels,
        *,
        choose: Callable[[], Sequence[tuple[str, str]]],
        seed: int,
    ) -> None:
        """Describe the previews; nothing is generated before `make`.

        Args:
            directory: of the training.
            choose: returns splits and prompts, when the first preview is made.
            seed: of the noise.
        """
        self.folder = PreviewFolder(directory / FOLDER_NAME)
        self._family, self._models, self._choose, self._seed = family, models, choose, seed

    def make(self, step: int, denoiser: nn.Module, average: EMAModel | None) -> Path:
        """Write the grid of a student, as it would be saved now, and return its path; one that exists is kept.

        Args:
            step: optimiser steps done.
            denoiser: the student's; it is as before afterwards.
            average: of its weights, which is what will be saved; None: the weights themselves are.

        Raises:
            CondistillError: its images are not finite.
        """
        file = self.folder.file(step)
        if self.folder.rows(step) is not None and self.folder.record() == self._record:
            return file
        with _same_random_states(self._family.device):
            teacher = self._teacher_row()
            with _saved_weights(denoiser, average, self._family.dtype):
                student = self._row(denoiser, self._models.student)
        _write(file, _joined([teacher, student]))
        return file

    @cached_property
    def _prompts(self) -> tuple[PreviewPrompt, ...]:
        return tuple(PreviewPrompt(split=split, prompt=prompt) for split, prompt in self._choose())

    @cached_property
    def _record(self) -> PreviewRecord:
        height, width = self._family.image_size
        scale = max(height, width) / min(_LARGEST_SIDE, max(height, width))
        return PreviewRecord(
            prompts=self._prompts,
            height=max(round(height / scale), 1),
            width=max(round(width / scale), 1),
            num_inference_steps=self._models.student.num_inference_steps,
            guidance_scale=self._models.student.guidance_scale,
        )

    def _teacher_row(self) -> Image.Image:
        """Return the teacher's images, which are generated once."""
        path, record = self.folder.path / _TEACHER_NAME, self._record
        if self.folder.record() == record and path.is_file():
            try:
                with Image.open(path) as opened:
                    row: Image.Image = opened.convert("RGB")
                if row.size == _grid_size(record, rows=1):
                    return row
            except (OSError, ValueError, SyntaxError):
                pass  # damaged, so it is generated again
        row = self._row(self._family.denoiser, self._models.teacher)
        _write(path, row)
        record.write(self.folder.path / RECORD_NAME)
        return row

    def _row(self, denoiser: nn.Module, sampling: Sampling) -> Image.Image:
        """Return the images of one model next to each other; one is generated and decoded at a time."""
        family, record = self._family, self._record
        row = Image.new("RGB", _grid_size(record, rows=1), "white")
        for column, prompt in enumerate(record.prompts):
            noise = image_noise(self._seed, Stream.PREVIEWS, column, family.latent_shape)
            latents = family.sample(
                denoiser,
                [prompt.prompt],
                torch.from_numpy(noise)[None],
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                seeds=[image_seed(self._seed, Stream.PREVIEWS, column)],
                scheduler=sampling.scheduler(family) or copy.deepcopy(family.pipeline.scheduler),
            )
            pixels: NDArray[np.uint8] = family.decode(latents)[0]
            image = Image.fromarray(pixels).resize((record.width, record.height), Image.Resampling.LANCZOS)
            row.paste(image, (column * (record.width + _GAP), 0))
        return row


def _cheap(sampling: Sampling) -> Sampling:
    if sampling.few_steps is not None:
        return sampling
    return replace(sampling, num_inference_steps=min(PREVIEW_STEPS, sampling.num_inference_steps))


def _grid_size(record: PreviewRecord, *, rows: int) -> tuple[int, int]:
    """Return (width, height) of a grid in pixels."""
    columns = len(record.prompts)
    return columns * (record.width + _GAP) - _GAP, rows * (record.height + _GAP) - _GAP


def _cut(grid: Image.Image, record: PreviewRecord, row: int) -> list[Image.Image]:
    """Return the images of one row of a grid."""
    top = row * (record.height + _GAP)
    lefts = [column * (record.width + _GAP) for column in range(len(record.prompts))]
    return [grid.crop((left, top, left + record.width, top + record.height)) for left in lefts]


def _joined(rows: Sequence[Image.Image]) -> Image.Image:
    """Return rows of the same size below each other."""
    width, height = rows[0].size
    grid = Image.new("RGB", (width, len(rows) * (height + _GAP) - _GAP), "white")
    for number, row in enumerate(rows):
        grid.paste(row, (0, number * (height + _GAP)))
    return grid


def _write(path: Path, image: Image.Image) -> None:
    with atomic_file(path) as partial:
        image.save(partial, format="PNG")


@contextmanager
def _same_random_states(device: torch.device) -> Iterator[None]:
    """Leave the random generators of Python, NumPy and torch as they are."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _saved_weights(denoiser: nn.Module, average: EMAModel | None, dtype: torch.dtype) -> Iterator[None]:
    """Give a denoiser the weights that will be saved, in the dtype of the pipeline, and take them back.

    Nothing is copied where the dtype is the same: the tensors of the average take the place of the weights.
    """
    parameters = list(denoiser.named_parameters())
    averages = [weight.data for _, weight in parameters] if average is None else average.shadow_params
    new = {name: value for (name, _), value in zip(parameters, averages, strict=True)}
    was_training, originals = denoiser.training, []
    try:
        denoiser.eval()
        for name, tensor in (*parameters, *denoiser.named_buffers()):
            originals.append((tensor, tensor.data))
            value = new.get(name, tensor.data).detach()
            tensor.data = value.to(dtype) if is_cast(denoiser, name, value) else value
        yield
    finally:
        for tensor, data in originals:
            tensor.data = data
        denoiser.train(was_training)
