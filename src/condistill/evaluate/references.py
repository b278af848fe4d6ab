"""What a distance to the teacher is compared with: the student before its training, and the teacher from other noise.

A student that works is much closer to its teacher than before its training, whatever the scale of the metric. Two
images of the teacher from different noise show how far apart unrelated images of the same prompts are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from condistill.config.recipe import TEACHER, Recipe
from condistill.errors import CondistillError
from condistill.evaluate.generate import Round, generate_round
from condistill.evaluate.measure import Decode, Measurement
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.record import ReferenceRecord
from condistill.pipelines.sampling import Sampling
from condistill.run.stage_directory import StageDir
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream

REFERENCE_PROMPTS = 16
"""Of each split of the first seed, at most: enough for a scale, and cheap."""
OTHER_SEED = f"{TEACHER}.other_seed"
"""The teacher from other noise. The dot keeps it apart from the names of students."""


def untrained(name: str) -> str:
    """Return the name of a student before its training among the evaluated models."""
    return f"{name}.untrained"


def reference_names(recipe: Recipe) -> list[str]:
    """Return the names of all reference models of a recipe."""
    return [OTHER_SEED, *map(untrained, recipe.variants)]


@dataclass(frozen=True)
class References:
    """Measures the reference models of an evaluation."""

    family: Family
    round_: Round
    """The prompts that they are measured on: some of the evaluation's."""
    decode: Decode
    batch_size: int
    directory: Callable[[str], StageDir]
    """Returns where the latents of a model are kept."""
    say: Callable[[str], None]
    """Called with a line about a reference that cannot be measured."""
    on_images: Callable[[int, str], None]
    """Called with the number of images of every finished batch, and the model."""

    def record(
        self,
        teacher_latents: NDArray[Any],
        initial: Mapping[str, Callable[[], nn.Module]],
        sampling: Mapping[str, Sampling],
    ) -> ReferenceRecord:
        """Return the distances of the references to the teacher.

        Args:
            teacher_latents: the teacher's latents of `round_`.
            initial: by student, a function that returns its denoiser before its training.
            sampling: of teacher and students, by name.
        """
        measurement = Measurement([self.round_], self.decode, batch_size=self.batch_size)
        kinds = [metric for metric in METRICS.values() if metric.is_distance_to_teacher()]

        def scores(model: str, load: Callable[[], nn.Module], sampled: Sampling, stream: Stream) -> Any:
            try:
                latents = self._latents(model, load, sampled, stream)
            except CondistillError as error:
                self.say(f"warning: no reference {model}: {error}")
                return {}
            return measurement.scores(model, [latents], [teacher_latents], kinds=kinds)

        noise = Stream.EVALUATION_NOISE
        return ReferenceRecord(
            images_per_split={split: self.round_.count(split) for split in self.round_.splits},
            other_seed=scores(
                OTHER_SEED, lambda: self.family.denoiser, sampling[TEACHER], Stream.OTHER_EVALUATION_NOISE
            ),
            untrained={name: scores(untrained(name), load, sampling[name], noise) for name, load in initial.items()},
        )

    def _latents(
        self, model: str, load: Callable[[], nn.Module], sampling: Sampling, stream: Stream
    ) -> NDArray[np.float32]:
        """Return the latents of one reference, which are kept; a model whose latents are there is not loaded."""
        directory = self.directory(model)
        is_done = directory.is_done()
        folder: Path = directory.path if is_done else directory.begin()
        latents = generate_round(
            folder / f"seed-{self.round_.seed}.arrow",
            self.family,
            self.family.denoiser if is_done else load(),
            self.round_,
            model=model,
            batch_size=self.batch_size,
            sampling=sampling,
            stream=stream,
            on_images=lambda count: self.on_images(count, model),
        )
        if not is_done:
            directory.finish()
        return latents
