"""What models cost: the size, the time and the memory of one image, and the training of a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from condistill.config.recipe import TEACHER, Recipe
from condistill.evaluate.record import ComputeRecord, SamplingRecord, SizeRecord, SpeedRecord
from condistill.pipelines.sampling import Sampling
from condistill.profiling.forwards import TrainingForwards, evaluations_per_image
from condistill.profiling.macs import macs
from condistill.profiling.memory import peak_memory
from condistill.profiling.timing import time_images
from condistill.students.guidance import guidance_kind
from condistill.teachers.family import Family
from condistill.teachers.files import PipelineFiles
from condistill.utils.meta import parameters


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


def speed_records(
    family: Family,
    denoisers: Mapping[str, nn.Module],
    sampling: Mapping[str, Sampling],
    *,
    on_image: Callable[..., object] = lambda **_: None,
) -> dict[str, SpeedRecord]:
    """Measure time and memory of one image with every model, the teacher among them, on the family's device.

    Args:
        on_image: see `time_images`.
    """
    peaks = {name: peak_memory(family, denoiser) for name, denoiser in denoisers.items()}  # a warm-up as well
    times = time_images(family, denoisers, sampling, on_image=on_image)
    return {
        name: SpeedRecord(
            sec_per_image=times[name].shortest,
            median_sec_per_image=times[name].median,
            rounds=times[name].rounds,
            relative_time=times[name].shortest / times[TEACHER].shortest,
            peak_memory_bytes=peaks[name],
        )
        for name in denoisers
    }


def compute_record(
    recipe: Recipe, name: str, denoisers: Mapping[str, nn.Module], train_sec: Mapping[str, float | None]
) -> ComputeRecord:
    """Return the cost of training a variant and the variants that taught it, in a row; all share one cache.

    Args:
        denoisers: of the teacher and of every variant.
        train_sec: of every variant, the seconds of its own training, where they are known.
    """
    cache = recipe.cache
    cache_sampling = Sampling(cache.num_inference_steps, cache.guidance_scale)
    costs, seconds = [], []
    for variant in (name, *recipe.teachers(name)):
        teacher: Any = denoisers[recipe.variants[variant].teacher or TEACHER]
        forwards = TrainingForwards.of(
            recipe.variant(variant)[1],
            cache,
            evaluations_per_image=evaluations_per_image(cache_sampling, denoisers[TEACHER]),
            teacher_takes_guidance=guidance_kind(teacher) == "embedded",
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
