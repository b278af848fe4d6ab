"""What models cost: the size, the time and the memory of one image, and the training of a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from condistill.config.recipe import TEACHER, Recipe
from condistill.evaluate.record import ComputeRecord, SamplingRecord, SizeRecord, SpeedRecord
from condistill.pipelines.sampling import Sampling
from condistill.profiling.forwards import TrainingForwards, evaluations_per_image
from condistill.profiling.macs import macs
from condistill.profiling.memory import peak_memory
from condistill.profiling.timing import MIN_ROUNDS, SLOW_SECONDS, Timing, fewest_images, shapes_of, time_images
from condistill.students.guidance import GuidanceKind, guidance_kind
from condistill.teachers.family import Family
from condistill.teachers.files import PipelineFiles
from condistill.utils.meta import parameters

IMAGES_PER_STUDENT = 2 * (1 + MIN_ROUNDS)
"""Images that are timed for a student at least: its own and the teacher's."""


def sampling_record(sampling: Sampling, denoiser: nn.Module) -> SamplingRecord:
    """Return how a model generates an image, and its denoiser evaluations."""
    return SamplingRecord(
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        denoiser_evaluations=evaluations_per_image(sampling, denoiser),
    )


def size_record(denoiser: Any, family: Family, files: PipelineFiles) -> SizeRecord:
    """Return the size of a denoiser, and of the files of its pipeline on disk."""
    return SizeRecord(
        parameters=parameters(denoiser),
        macs=macs(denoiser, size=family.latent_shape[1:], text_length=family.text_length),
        weight_bytes=files.weight_bytes(family.denoiser_name),
        pipeline_bytes=files.total_bytes(),
    )


class Speeds:
    """Measures time and memory of one image with every model, one student at a time with the teacher.

    Teacher and student take turns, so that a busy machine slows both of them down. Both are on the device then, without
    what a training needs besides. A teacher whose images take long is timed with the first student only.
    """

    def __init__(
        self, family: Family, sampling: Sampling, *, on_image: Callable[..., object] = lambda **_: None
    ) -> None:
        """Describe the teacher: the denoiser of the family.

        Args:
            sampling: of the teacher.
            on_image: see `time_images`; called `IMAGES_PER_STUDENT` times or more for every student.
        """
        self._family, self._sampling, self._on_image = family, sampling, on_image
        self._teacher: Timing | None = None
        self._known: dict[Any, SpeedRecord] = {}

    def of_student(self, denoiser: nn.Module, sampling: Sampling) -> SpeedRecord:
        """Return the record of a student. Students of the same shapes that are sampled alike share their times."""
        alike = (shapes_of(denoiser), sampling)
        if (known := self._known.get(alike)) is not None:
            for _ in range(IMAGES_PER_STUDENT):
                self._on_image(left_out=True)
            return known
        family, models, samplings = self._family, {"student": denoiser}, {"student": sampling}
        is_slow = self._teacher is not None and self._teacher.shortest >= SLOW_SECONDS / 2
        if not is_slow:
            models[TEACHER], samplings[TEACHER] = family.denoiser, self._sampling
        peak = peak_memory(family, denoiser)  # a warm-up as well
        times = time_images(family, models, samplings, on_image=self._on_image)
        for _ in range(IMAGES_PER_STUDENT - fewest_images(models, samplings)):
            self._on_image(left_out=True)
        teacher = times.get(TEACHER) or self._teacher
        assert teacher is not None
        if self._teacher is None or teacher.shortest < self._teacher.shortest:
            self._teacher = teacher
        record = self._known[alike] = _speed(times["student"], teacher, peak)
        return record

    def of_teacher(self) -> SpeedRecord:
        """Return the record of the teacher, the shortest of its times with all students."""
        family = self._family
        peak = peak_memory(family, family.denoiser)
        if self._teacher is None:
            self._teacher = time_images(family, {TEACHER: family.denoiser}, {TEACHER: self._sampling})[TEACHER]
        return _speed(self._teacher, self._teacher, peak)


def _speed(timing: Timing, teacher: Timing, peak: int) -> SpeedRecord:
    return SpeedRecord(
        sec_per_image=timing.shortest,
        median_sec_per_image=timing.median,
        rounds=timing.rounds,
        relative_time=timing.shortest / teacher.shortest,
        peak_memory_bytes=peak,
    )


@dataclass(frozen=True)
class Kind:
    """What the cost of a training depends on of a denoiser, which itself need not stay in memory."""

    guidance: GuidanceKind
    needs_two: bool
    """Whether a guided step needs two evaluations."""

    @classmethod
    def of(cls, denoiser: Any) -> Kind:
        """Describe a denoiser."""
        return cls(guidance_kind(denoiser), evaluations_per_image(Sampling(1, 2.0), denoiser) == 2)

    def evaluations(self, sampling: Sampling) -> int:
        """Return its denoiser evaluations per image."""
        return sampling.num_inference_steps * (2 if self.needs_two and sampling.guidance_scale > 1 else 1)


def compute_record(
    recipe: Recipe, name: str, kinds: Mapping[str, Kind], train_sec: Mapping[str, float | None]
) -> ComputeRecord:
    """Return the cost of training a variant and the variants that taught it, in a row; all share one cache.

    Args:
        kinds: how the teacher and every variant is guided.
        train_sec: of every variant, the seconds of its own training, where they are known.
    """
    cache = recipe.cache
    cache_sampling = Sampling(cache.num_inference_steps, cache.guidance_scale)
    costs, seconds = [], []
    for variant in (name, *recipe.teachers(name)):
        teacher = kinds[recipe.variants[variant].teacher or TEACHER]
        forwards = TrainingForwards.of(
            recipe.variant(variant)[1],
            cache,
            evaluations_per_image=kinds[TEACHER].evaluations(cache_sampling),
            teacher_takes_guidance=teacher.guidance == "embedded",
        )
        costs.append(
            ComputeRecord(
                teacher_forwards=forwards.teacher,
                student_forwards=forwards.student,
                cache_forwards=forwards.cache,
            )
        )
        seconds.append(train_sec[variant])
    known = [sec for sec in seconds if sec is not None]
    return ComputeRecord(
        teacher_forwards=sum(cost.teacher_forwards for cost in costs),
        student_forwards=sum(cost.student_forwards for cost in costs),
        cache_forwards=max(cost.cache_forwards for cost in costs),
        train_sec=sum(known) if len(known) == len(seconds) else None,
    )
