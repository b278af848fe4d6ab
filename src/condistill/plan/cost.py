"""What a recipe costs: forwards, arithmetic, hours, disk and memory, each with what is assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.pipelines.sampling import Sampling, planned_sampling
from condistill.plan.candidates import Candidate, inputs_of
from condistill.plan.devices import Device
from condistill.plan.memory import training_peak
from condistill.plan.step import SyntheticStep
from condistill.profiling.forwards import Load, forwards_per_step, prompts_per_sample
from condistill.students.derive import Student
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import build_on_meta, parameters, plain_config

EFFICIENCY = 0.3
"""Share of the peak of tensor cores that a training reaches: assumed. BK-SDM's 300 hours for 50,000 steps on one A100
(arXiv 2305.15798) are 8 %; transformers that are fed well reach more than 40 %."""
ORDINARY_EFFICIENCY = 0.5
"""The same of other arithmetic: assumed."""
UPDATE_BYTES = 64
"""Moved per weight and step: AdamW reads 4 numbers and writes 3, clipping 3, the average 6; of 4 bytes each."""
_SINGLE = 4


@dataclass(frozen=True)
class Rates:
    """How fast devices of a kind are taken to be."""

    device: Device
    count: int
    efficiency: float

    def seconds(self, macs: float, dtype: torch.dtype, *, convolutions: float = 0) -> float:
        """Of multiply-accumulates on one of the devices.

        Args:
            convolutions: how many of them are; in float32 these may use the tensor cores.
        """
        device = self.device
        if dtype != torch.float32:
            return 2 * macs / (device.half_flops * self.efficiency)
        on_tensor_cores = device.convolution_flops > 1.5 * device.single_flops
        share = self.efficiency if on_tensor_cores else ORDINARY_EFFICIENCY
        rest = (macs - convolutions) / (device.single_flops * ORDINARY_EFFICIENCY)
        return 2 * (convolutions / (device.convolution_flops * share) + rest)

    def forward(self, model: Candidate, dtype: torch.dtype) -> float:
        """Seconds of one forward of one sample."""
        return self.seconds(model.macs, dtype, convolutions=model.convolutions)


@dataclass(frozen=True)
class Measured:
    """What a training step took on the present device."""

    teacher_sec: float
    """Of a sample's forward, in a micro-batch."""
    student_sec: float
    """Of a sample's forward and backward."""
    text_sec: float
    """Of encoding a prompt, in a micro-batch."""
    update_sec: float
    """Of a step: clipping, optimiser and average."""
    peak_bytes: int | None
    """At the worst moment, everything on the device but the rest of the pipeline; on a GPU."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of a training, by part."""

    teacher: int
    other_components: int
    student: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Job:
    """A student, who teaches it and how."""

    skeleton: Skeleton
    teacher: Candidate
    student: Candidate
    settings: DistillSettings
    dtype: torch.dtype
    """Of the teacher and the rest of its pipeline."""
    processes: int

    @property
    def load(self) -> Load:
        """What a forward of a micro-batch asks."""
        return Load.of(self.settings, processes=self.processes, teacher_takes_guidance=self.teacher.takes_guidance)

    @property
    def half(self) -> torch.dtype | None:
        """The dtype of mixed precision."""
        return {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[self.settings.mixed_precision]

    def step(self, teacher: Any, student: Student) -> SyntheticStep:
        """A step of these two networks, on whatever device they are."""
        return SyntheticStep(
            teacher, student, self.settings, inputs_of(self.skeleton, self.teacher.denoiser), self.load
        )

    def memory(self) -> Memory:
        """What the training needs on each device."""
        denoiser, settings, parts = self.teacher.denoiser, self.settings, self.skeleton.components
        step = self.step(build_on_meta(type(denoiser), plain_config(denoiser)).to(self.dtype), self.student.student)
        peak = training_peak(step, self.half)
        step.release()
        weights = self.student.params * _SINGLE
        trained = weights + (parameters(self.student.student.maps) * _SINGLE if settings.loss.feature_weight else 0)
        own = parts[self.skeleton.family.denoiser_name]
        is_chained = denoiser is not self.skeleton.denoiser  # then the pipeline's own denoiser waits beside it
        return Memory(
            teacher=(own + (self.teacher.params if is_chained else 0)) * self.dtype.itemsize,
            other_components=(sum(parts.values()) - own) * self.dtype.itemsize,
            student=trained,
            gradients=trained,
            optimizer=2 * trained,
            ema=weights if settings.optimizer.ema_decay else 0,
            activations=max(peak - trained, 0),
        )

    def cost(self, rates: Rates, measured: Measured | None = None) -> dict[str, Any]:
        """What the training costs."""
        settings, load = self.settings, self.load
        per_step = forwards_per_step(settings, teacher_takes_guidance=self.teacher.takes_guidance)
        teacher_forwards, student_forwards = (forwards / settings.batch_size for forwards in per_step)
        teacher_macs = self.teacher.macs * teacher_forwards
        passes = 4 if settings.gradient_checkpointing else 3  # a backward is two forwards; checkpointing adds one
        student_macs = self.student.macs * student_forwards * passes
        prompts = prompts_per_sample(settings)
        text_macs = self.skeleton.text_macs * prompts
        update = self.student.params * UPDATE_BYTES / rates.device.bandwidth
        if measured:
            per_sample = measured.teacher_sec * teacher_forwards + measured.student_sec * student_forwards
            per_sample += measured.text_sec * prompts
            update = measured.update_sec
        else:
            per_sample = rates.seconds(text_macs, self.dtype)
            per_sample += rates.forward(self.teacher, self.dtype) * teacher_forwards
            per_sample += rates.forward(self.student, self.half or torch.float32) * student_forwards * passes
        step_sec = per_sample * math.ceil(settings.batch_size / rates.count) + update
        memory = self.memory()
        hours = settings.steps * step_sec / 3600
        told = {"measured_memory_bytes": measured.peak_bytes} if measured and measured.peak_bytes else {}
        return {
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "micro_batch_size": load.compared,
            "teacher_forwards_per_sample": teacher_forwards,
            "student_forwards_per_sample": student_forwards,
            "flops_per_sample": 2 * (teacher_macs + student_macs + text_macs),
            "samples_per_sec": settings.batch_size / step_sec,
            "sec_per_step": step_sec,
            "hours": hours,
            "device_hours": hours * rates.count,
            "checkpoint_bytes": (settings.logging.keep_checkpoints + 1) * 4 * self.student.params * _SINGLE,
            "memory_bytes": {**asdict(memory), "total": memory.total},
            "fits": memory.total <= rates.device.memory_bytes,
            **told,
        }


def cache_cost(
    skeleton: Skeleton,
    teacher: Candidate,
    recipe: Recipe,
    rates: Rates,
    *,
    dtype: torch.dtype,
    teacher_sec: float | None = None,
) -> dict[str, Any]:
    """What drawing the cached latents costs.

    Args:
        teacher_sec: what a sample's forward took, where it was measured.
    """
    cache = recipe.cache
    forwards = cache.size * Sampling(cache.num_inference_steps, cache.guidance_scale).denoiser_evaluations(
        teacher.denoiser
    )
    seconds = forwards * (teacher_sec or rates.forward(teacher, dtype))
    seconds += rates.seconds(2 * cache.size * skeleton.text_macs, dtype)  # the prompt, and the empty one
    return {
        "images": cache.size,
        "teacher_forwards": forwards,
        "disk_bytes": cache.size * math.prod(skeleton.family.latent_shape) * getattr(torch, cache.dtype).itemsize,
        "hours": seconds / 3600 / rates.count,
        "device_hours": seconds / 3600,
    }


def evaluation_cost(
    teacher: Candidate, students: Mapping[str, Candidate], recipe: Recipe, rates: Rates, *, dtype: torch.dtype
) -> dict[str, Any]:
    """What drawing the pictures of the evaluation costs, on one device; decoding and classifying are left out."""
    settings = recipe.evaluate
    splits = 2 if recipe.prompts.unseen_words or recipe.prompts.unseen_files else 1
    images = len(settings.seeds) * splits * settings.prompts_per_split
    seconds, models = 0.0, [(None, teacher), *students.items()]
    for name, model in models:
        calls = planned_sampling(recipe, name).denoiser_evaluations(model.denoiser)
        seconds += images * calls * rates.forward(model, dtype)
    hours = seconds / 3600
    return {"images": images * (1 + len(students)), "hours": hours, "device_hours": hours}
