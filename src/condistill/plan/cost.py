"""The cost of a recipe's stages: forwards, arithmetic, hours, disk and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ModelMixin

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.distill.checkpoints import checkpoint_bytes, checkpoints_kept
from condistill.distill.previews import PREVIEW_STEPS, preview_prompts, preview_steps
from condistill.evaluate.run_tasks import REFERENCE_PROMPTS, measures_diversity
from condistill.pipelines.sampling import planned_sampling
from condistill.plan.candidates import Candidate, teacher_inputs
from condistill.plan.devices import Hardware
from condistill.plan.memory import training_peak
from condistill.plan.record import CacheCost, EvaluationCost, TrainingCost, TrainingMemory
from condistill.plan.step import SyntheticStep
from condistill.profiling.forwards import MicroBatch, SampleCost, evaluations_per_image
from condistill.profiling.shapes import ShapesOnly
from condistill.students.derive import Student
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import build_on_meta, parameters, plain_config

UPDATE_BYTES = 52
"""Bytes moved per weight in an update: AdamW reads 4 numbers and writes 3, clipping 3, the average of weights 3; each
has 4 bytes."""
PROCESS_BYTES = 600 * 2**20
"""Of a process on a CPU without models: Python, torch, diffusers and transformers (benchmarks/real_size.md)."""
RESERVE_BYTES = 2**30
"""Of a training or an evaluation on a CPU beyond its tensors: buffers of kernels, and freed memory that malloc keeps.
Measured: 0.7 GiB at 256 x 256 pixels and 1.7 GiB at 512 x 512 (benchmarks/real_size.md)."""
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

    def memory(self, *, on_host: bool = False) -> TrainingMemory:
        """Count the memory that the training needs on each device.

        Args:
            on_host: whether the device is a CPU, whose memory has the libraries too.
        """
        denoiser = self.teacher.denoiser
        step = self.step(build_on_meta(type(denoiser), plain_config(denoiser)).to(self.dtype), self.student.student)
        accumulates = self.settings.batch_size > self.processes * self.micro_batch.samples
        peak = training_peak(step, self.half, accumulates=accumulates)
        step.release()
        trained = self._weights(self.student)
        return self._memory(self.student, max(peak - trained, 0), on_host=on_host)

    def memory_of(self, other: Candidate, known: TrainingMemory) -> int:
        """Return the bytes, about, that the training of another student of this teacher needs on each device.

        Args:
            known: of this student; activations are in proportion to what the backward of a layer needs.
        """
        activations = round(known.activations * other.saved / self.student.saved)
        return self._memory(other, activations, on_host=known.process > 0).total

    def _weights(self, student: Candidate) -> int:
        """Return the bytes of all that is trained; the maps of features are those of this student."""
        maps = parameters(self.student.student.maps) if self.settings.loss.feature_weight else 0
        return (student.params + maps) * _SINGLE

    def _memory(self, student: Candidate, activations: int, *, on_host: bool) -> TrainingMemory:
        components, trained = self.skeleton.components, self._weights(student)
        pipeline_denoiser = components[self.skeleton.family.denoiser_name]
        # a student that teaches is in memory together with the pipeline's own denoiser
        chained = self.teacher.params if self.teacher.denoiser is not self.skeleton.denoiser else 0
        parts = {
            "process": PROCESS_BYTES + RESERVE_BYTES if on_host else 0,
            "teacher": (pipeline_denoiser + chained) * self.dtype.itemsize,
            "other_components": (sum(components.values()) - pipeline_denoiser) * self.dtype.itemsize,
            "student": trained,
            "gradients": trained,
            "optimizer": 2 * trained,
            "ema": student.params * _SINGLE if self.settings.optimizer.ema_decay else 0,
            "activations": activations,
        }
        return TrainingMemory(**parts, total=sum(parts.values()))

    def step_sec(self, hardware: Hardware, student: Candidate, measured: MeasuredStep | None = None) -> float:
        """Return the seconds of a step with a student, from `measured` or else from the rates of the hardware.

        Args:
            measured: of this student.
        """
        settings = self.settings
        sample = SampleCost.of(settings, teacher_takes_guidance=self.teacher.takes_guidance)
        if measured:
            sample_sec = measured.teacher_sec * sample.teacher + measured.student_sec * sample.student
            sample_sec += measured.text_sec * sample.prompts
            update_sec = measured.update_sec
        else:
            sample_sec = hardware.seconds(self.skeleton.text_macs * sample.prompts, self.dtype)
            sample_sec += forward_sec(hardware, self.teacher, self.dtype) * sample.teacher
            student_sec = forward_sec(hardware, student, self.half or torch.float32)
            sample_sec += student_sec * sample.student * self._passes
            update_sec = student.params * UPDATE_BYTES / hardware.device.bandwidth
        return sample_sec * math.ceil(settings.batch_size / hardware.count) + update_sec

    @property
    def _passes(self) -> int:
        """Forwards of the student per sample: a backward is two, and checkpointing adds one."""
        return 4 if self.settings.gradient_checkpointing else 3

    def cost(
        self, hardware: Hardware, measured: MeasuredStep | None = None, *, preview_hours: float = 0.0
    ) -> TrainingCost:
        """Return the cost of the training; its time is from `measured`, or else from the rates of the hardware.

        Args:
            preview_hours: of the images that are made during the training.
        """
        settings = self.settings
        sample = SampleCost.of(settings, teacher_takes_guidance=self.teacher.takes_guidance)
        macs = self.teacher.macs * sample.teacher + self.student.macs * sample.student * self._passes
        text_macs = self.skeleton.text_macs * sample.prompts
        step_sec = self.step_sec(hardware, self.student, measured)
        hours = settings.steps * step_sec / 3600 + preview_hours
        memory = self.memory(on_host=hardware.device.is_host)
        return TrainingCost(
            hours=hours,
            device_hours=hours * hardware.count,
            steps=settings.steps,
            batch_size=settings.batch_size,
            micro_batch_size=self.micro_batch.samples,
            teacher_forwards_per_sample=sample.teacher,
            student_forwards_per_sample=sample.student,
            preview_hours=preview_hours,
            flops_per_sample=2 * (macs + text_macs),
            samples_per_sec=settings.batch_size / step_sec,
            sec_per_step=step_sec,
            checkpoint_bytes=(checkpoints_kept(settings) + 1) * checkpoint_bytes(settings, self.student.params),
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


def evaluated_images(recipe: Recipe) -> int:
    """Return the images of an evaluation: of teacher and students, of references, and of several seeds of a prompt."""
    return (1 + len(recipe.variants)) * sum(_images_of_a_model(recipe))


def _images_of_a_model(recipe: Recipe) -> tuple[int, int]:
    """Return the images of a model of an evaluation, and of its one reference."""
    settings, splits = recipe.evaluate, _splits(recipe)
    images = len(settings.seeds) * splits * settings.prompts_per_split
    if measures_diversity(recipe.evaluate):
        images += min(settings.diversity_prompts, splits * settings.prompts_per_split) * settings.diversity_seeds
    return images, splits * min(settings.prompts_per_split, REFERENCE_PROMPTS)


def evaluation_cost(
    recipe: Recipe,
    hardware: Hardware,
    models: tuple[Candidate, Mapping[str, Candidate]],
    *,
    dtype: torch.dtype,
    decode_macs: int = 0,
) -> EvaluationCost:
    """Return the cost of generating the images of the evaluation, and of decoding them where networks read them.

    Images are divided over the devices, those of references are generated by the first one.

    Args:
        models: the teacher, and the students by name.
        decode_macs: of one image; 0: not counted.
    """
    teacher, students = models
    images, of_reference = _images_of_a_model(recipe)
    is_decoded = bool(recipe.evaluate.networks.model_dump(exclude_none=True)) or recipe.evaluate.classifier != "none"
    decode_sec = hardware.seconds(decode_macs, dtype) if is_decoded else 0.0
    shared = alone = 0.0
    named: list[tuple[str | None, Candidate]] = [(None, teacher), *students.items()]
    for name, model in named:
        evaluations = evaluations_per_image(planned_sampling(recipe, name), model.denoiser)
        image_sec = evaluations * forward_sec(hardware, model, dtype) + decode_sec
        shared += images * image_sec
        alone += of_reference * image_sec
    return EvaluationCost(
        hours=(shared / hardware.count + alone) / 3600,
        device_hours=(shared + alone) / 3600,
        images=(images + of_reference) * len(named),
    )


def preview_hours(
    recipe: Recipe,
    name: str,
    skeleton: Skeleton,
    hardware: Hardware,
    models: tuple[Candidate, Candidate],
    *,
    dtype: torch.dtype,
) -> float:
    """Return the hours of the images that are made during the training of a variant; the main process makes them.

    The teacher's are made once, those of the student in every preview, each in `PREVIEW_STEPS` steps or fewer.

    Args:
        models: the teacher and the student.
        dtype: of the teacher; the student has float32 weights.
    """
    settings = recipe.variant(name)[1]
    times = len(preview_steps(settings, quick=recipe.quick))
    if not times:
        return 0.0
    prompts = _splits(recipe) * preview_prompts(quick=recipe.quick)
    decode_sec = hardware.seconds(decode_macs(skeleton), dtype)
    seconds = 0.0
    for variant, model, kind, count in (
        (None, models[0], dtype, 1),
        (name, models[1], torch.float32, times),
    ):
        sampling = planned_sampling(recipe, variant)
        if sampling.few_steps is None:
            sampling = replace(sampling, num_inference_steps=min(PREVIEW_STEPS, sampling.num_inference_steps))
        evaluations = evaluations_per_image(sampling, model.denoiser)
        seconds += count * prompts * (evaluations * forward_sec(hardware, model, kind) + decode_sec)
    return seconds / 3600


def decode_macs(skeleton: Skeleton) -> int:
    """Return the multiply-accumulates of decoding one image; 0 without an autoencoder."""
    vae: Any = skeleton.family.pipeline.components.get("vae")
    if vae is None:
        return 0
    latents = torch.empty(1, *skeleton.family.latent_shape, device="meta", dtype=vae.dtype)
    with torch.no_grad(), ShapesOnly() as counted:
        vae.decode(latents, return_dict=False)
    return int(counted.macs)


def _splits(recipe: Recipe) -> int:
    return 2 if recipe.prompts.unseen_words or recipe.prompts.unseen_files else 1
