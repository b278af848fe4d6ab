"""The cost of a recipe's stages: forwards, arithmetic, hours, disk and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import ModelMixin

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.evaluate.references import REFERENCE_PROMPTS
from condistill.pipelines.sampling import planned_sampling
from condistill.plan.candidates import Candidate, teacher_inputs
from condistill.plan.devices import Hardware
from condistill.plan.memory import training_peak
from condistill.plan.record import CacheCost, EvaluationCost, TrainingCost, TrainingMemory
from condistill.plan.step import SyntheticStep
from condistill.profiling.forwards import MicroBatch, SampleCost, evaluations_per_image
from condistill.students.derive import Student
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import build_on_meta, parameters, plain_config

UPDATE_BYTES = 64
"""Bytes moved per weight in an update: AdamW reads 4 numbers and writes 3, clipping 3, the average of weights 6; each
has 4 bytes."""
_SINGLE = 4
"""Bytes of a float32 number."""


@dataclass(frozen=True)
class MeasuredStep:
    """A training step that was measured on the present device."""

    teacher_sec: float
    """Per sample of a forward, in a micro-batch."""
    student_sec: float
    """Per sample of a forward and backward, in a micro-batch."""
    text_sec: float
    """Per encoded prompt, in a micro-batch."""
    update_sec: float
    """Per update: clipping, optimiser and average of weights."""
    peak_bytes: int | None
    """Peak memory of the step, without the rest of the pipeline; None on a CPU."""


@dataclass(frozen=True)
class TrainingJob:
    """The training of one student."""

    skeleton: Skeleton
    teacher: Candidate
    student: Candidate
    settings: DistillSettings
    dtype: torch.dtype
    """Of the teacher and the rest of its pipeline."""
    processes: int

    @property
    def micro_batch(self) -> MicroBatch:
        """The micro-batch of one process."""
        return MicroBatch.of(
            self.settings, processes=self.processes, teacher_takes_guidance=self.teacher.takes_guidance
        )

    @property
    def half(self) -> torch.dtype | None:
        """The dtype of mixed precision, if it is on."""
        return {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[self.settings.mixed_precision]

    def step(self, teacher: ModelMixin, student: Student) -> SyntheticStep:
        """Return a training step of these two networks, on their device."""
        inputs = teacher_inputs(self.skeleton, self.teacher.denoiser)
        return SyntheticStep(teacher, student, self.settings, inputs, self.micro_batch)

    def memory(self) -> TrainingMemory:
        """Count the memory that the training needs on each device."""
        denoiser, settings, components = self.teacher.denoiser, self.settings, self.skeleton.components
        step = self.step(build_on_meta(type(denoiser), plain_config(denoiser)).to(self.dtype), self.student.student)
        peak = training_peak(step, self.half)
        step.release()
        weights = self.student.params * _SINGLE
        trained = weights + (parameters(self.student.student.maps) * _SINGLE if settings.loss.feature_weight else 0)
        pipeline_denoiser = components[self.skeleton.family.denoiser_name]
        # a student that teaches is in memory together with the pipeline's own denoiser
        chained = self.teacher.params if denoiser is not self.skeleton.denoiser else 0
        parts = {
            "teacher": (pipeline_denoiser + chained) * self.dtype.itemsize,
            "other_components": (sum(components.values()) - pipeline_denoiser) * self.dtype.itemsize,
            "student": trained,
            "gradients": trained,
            "optimizer": 2 * trained,
            "ema": weights if settings.optimizer.ema_decay else 0,
            "activations": max(peak - trained, 0),
        }
        return TrainingMemory(**parts, total=sum(parts.values()))

    def cost(self, hardware: Hardware, measured: MeasuredStep | None = None) -> TrainingCost:
        """Return the cost of the training; its time is from `measured`, or else from the rates of the hardware."""
        settings = self.settings
        sample = SampleCost.of(settings, teacher_takes_guidance=self.teacher.takes_guidance)
        passes = 4 if settings.gradient_checkpointing else 3  # a backward is two forwards; checkpointing adds one
        macs = self.teacher.macs * sample.teacher + self.student.macs * sample.student * passes
        text_macs = self.skeleton.text_macs * sample.prompts
        if measured:
            sample_sec = measured.teacher_sec * sample.teacher + measured.student_sec * sample.student
            sample_sec += measured.text_sec * sample.prompts
            update_sec = measured.update_sec
        else:
            sample_sec = hardware.seconds(text_macs, self.dtype)
            sample_sec += forward_sec(hardware, self.teacher, self.dtype) * sample.teacher
            sample_sec += forward_sec(hardware, self.student, self.half or torch.float32) * sample.student * passes
            update_sec = self.student.params * UPDATE_BYTES / hardware.device.bandwidth
        step_sec = sample_sec * math.ceil(settings.batch_size / hardware.count) + update_sec
        hours, memory = settings.steps * step_sec / 3600, self.memory()
        return TrainingCost(
            hours=hours,
            device_hours=hours * hardware.count,
            steps=settings.steps,
            batch_size=settings.batch_size,
            micro_batch_size=self.micro_batch.samples,
            teacher_forwards_per_sample=sample.teacher,
            student_forwards_per_sample=sample.student,
            flops_per_sample=2 * (macs + text_macs),
            samples_per_sec=settings.batch_size / step_sec,
            sec_per_step=step_sec,
            checkpoint_bytes=(settings.logging.keep_checkpoints + 1) * 4 * self.student.params * _SINGLE,
            memory_bytes=memory,
            fits=memory.total <= hardware.device.memory_bytes,
            measured_memory_bytes=measured.peak_bytes if measured else None,
        )


def forward_sec(hardware: Hardware, model: Candidate, dtype: torch.dtype) -> float:
    """Return the seconds of one forward of one sample."""
    return hardware.seconds(model.macs, dtype, convolutions=model.convolutions)


def cache_cost(
    skeleton: Skeleton,
    recipe: Recipe,
    hardware: Hardware,
    *,
    evaluations_per_image: int,
    evaluation_sec: float,
    dtype: torch.dtype,
) -> CacheCost:
    """Return the cost of generating the cached latents.

    Args:
        evaluations_per_image: denoiser evaluations of the teacher for one image.
        evaluation_sec: seconds of one evaluation.
        dtype: of the text encoders.
    """
    cache = recipe.cache
    forwards = cache.size * evaluations_per_image
    seconds = forwards * evaluation_sec
    seconds += hardware.seconds(2 * cache.size * skeleton.text_macs, dtype)  # the prompt, and the empty one
    return CacheCost(
        hours=seconds / 3600 / hardware.count,
        device_hours=seconds / 3600,
        images=cache.size,
        teacher_forwards=forwards,
        disk_bytes=cache.size * math.prod(skeleton.family.latent_shape) * getattr(torch, cache.dtype).itemsize,
    )


def evaluation_cost(
    recipe: Recipe, hardware: Hardware, teacher: Candidate, students: Mapping[str, Candidate], *, dtype: torch.dtype
) -> EvaluationCost:
    """Return the cost of generating the images of the evaluation."""
    settings = recipe.evaluate
    splits = 2 if recipe.prompts.unseen_words or recipe.prompts.unseen_files else 1
    images = len(settings.seeds) * splits * settings.prompts_per_split
    images += splits * min(settings.prompts_per_split, REFERENCE_PROMPTS)  # of one reference per model
    models: list[tuple[str | None, Candidate]] = [(None, teacher), *students.items()]
    seconds = 0.0
    for name, model in models:
        evaluations = evaluations_per_image(planned_sampling(recipe, name), model.denoiser)
        seconds += images * evaluations * forward_sec(hardware, model, dtype)
    hours = seconds / 3600
    return EvaluationCost(hours=hours, device_hours=hours, images=images * len(models))
