"""The peak of memory of every stage, on the device and on the host, and the disk that a run needs.

Weights are counted exactly, and tensors of a forward on the meta device. On a CPU, the memory of the device is that of
the process: the interpreter and its libraries count too, and so do the pages of a file from which weights are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from condistill.config.recipe import Recipe
from condistill.distill.checkpoints import checkpoint_bytes, checkpoints_kept
from condistill.distill.previews import preview_steps
from condistill.errors import CondistillError
from condistill.evaluate.networks import NETWORKS
from condistill.pipelines.sampling import Sampling, planned_sampling
from condistill.plan.candidates import Candidate, teacher_inputs
from condistill.plan.cost import PROCESS_BYTES, RESERVE_BYTES, evaluated_images
from condistill.plan.memory import SavedTensorsOnly
from condistill.plan.record import RunDisk, RunMemory, StageMemory, TrainingMemory
from condistill.plan.step import repeat_inputs
from condistill.profiling.forwards import evaluations_per_image
from condistill.profiling.memory import MemoryMeter
from condistill.teachers.locate import is_plain
from condistill.teachers.pixels import images_at_once
from condistill.teachers.skeleton import Skeleton
from condistill.teachers.source import teacher_files

GPU_PROCESS_BYTES = 2_500 * 2**20
"""On the host, of a process that uses a GPU: the same and the libraries of CUDA; an assumption."""
KEPT_BYTES = 2047 * 2**20
"""Of freed memory, which the malloc of a process on a CPU keeps; see `utils.malloc`."""
FEATURE_BYTES = 12 * 2**10
"""Of the features of one image from one network, at most: those of Inception-v3, 2,048 and 1,008 numbers."""
_SINGLE = 4
"""Bytes of a float32 number."""
_META = torch.device("meta")


@dataclass(frozen=True)
class Footprint:
    """The memory and the disk of a run, from the shapes of its models."""

    recipe: Recipe
    skeleton: Skeleton
    teacher: Candidate
    students: Mapping[str, Candidate]
    """By name of the variant."""
    training: Mapping[str, TrainingMemory]
    """By name of the variant."""
    dtype: torch.dtype
    """Of every model that generates images."""
    on_host: bool
    """Whether the device is a CPU."""
    _numbers: dict[str, int] = field(default_factory=dict)
    """Numbers at the peak of a forward, by the name of the model."""

    @cached_property
    def _weights(self) -> dict[str, int]:
        """Bytes of every component of the teacher's pipeline."""
        return {name: count * self.dtype.itemsize for name, count in self.skeleton.components.items()}

    @property
    def _teacher(self) -> int:
        return sum(self._weights.values())

    def memory(self) -> RunMemory:
        """Count the peak of each stage."""
        cache = self.recipe.cache
        sampling = Sampling(cache.num_inference_steps, cache.guidance_scale)
        filled = self._forward(self.teacher, sampling, cache.batch_size) if cache.size else 0
        without_gradients = max(
            each.total - each.process - each.activations - each.gradients for each in self.training.values()
        )
        training = max(each.total for each in self.training.values()) - (PROCESS_BYTES if self.on_host else 0)
        training = max(training, without_gradients + self._previews())
        # after a step, its gradients and activations are free, but malloc keeps a part of them
        checkpoint = min(training, without_gradients + KEPT_BYTES) if self.on_host else without_gradients
        evaluated, mapped = self._evaluation()
        evaluated += RESERVE_BYTES if self.on_host else 0
        stage = self._on_host if self.on_host else self._on_device
        return RunMemory(
            load=stage(self._teacher, mapped=max(self._weights.values())),
            cache=stage(self._teacher + filled),
            training=stage(training),
            checkpoint=stage(checkpoint),
            saving=stage(checkpoint),
            evaluation=stage(evaluated, mapped=mapped),
        )

    def _forward(self, model: Candidate, sampling: Sampling, batch_size: int, dtype: torch.dtype | None = None) -> int:
        """Return the bytes of a denoiser evaluation; with classifier-free guidance, each image has two at once."""
        evaluations = evaluations_per_image(sampling, model.denoiser) // sampling.num_inference_steps
        numbers = self._numbers.get(model.name)
        if numbers is None:
            numbers = self._numbers[model.name] = forward_numbers(self.skeleton, model)
        return batch_size * evaluations * numbers * (dtype or self.dtype).itemsize

    def _decoded(self, batch_size: int) -> int:
        return batch_size * self._decoded_numbers * self.dtype.itemsize

    @cached_property
    def _decoded_numbers(self) -> int:
        return decoded_numbers(self.skeleton)

    def _previews(self) -> int:
        """Return the bytes of generating and decoding one image during a training."""
        peaks = [0]
        for name, student in self.students.items():
            if preview_steps(self.recipe.variant(name)[1], quick=self.recipe.quick):
                peaks.append(self._forward(student, planned_sampling(self.recipe, name), 1, torch.float32))
                peaks.append(self._decoded(1))
        return max(peaks)

    def _evaluation(self) -> tuple[int, int]:
        """Return the bytes at the peak on the device, and beyond them on the host.

        One denoiser at a time is on the device: while a student generates, and while images are decoded and read by
        networks, that of the teacher waits on the host. A student before its training is derived from the teacher's in
        float32 and cast; and a trained one is timed in turns with the teacher.
        """
        batch_size, itemsize = self.recipe.evaluate.batch_size, self.dtype.itemsize
        denoiser = self._weights[self._denoiser_name]
        waiting = self._teacher if self.on_host else self._teacher - denoiser
        decoded = min(batch_size, images_at_once(self.skeleton.family.image_size))
        peaks = [
            self._teacher + self._forward(self.teacher, planned_sampling(self.recipe, None), batch_size),
            waiting + self._decoded(decoded) + network_bytes(self.recipe),
        ]
        sizes = [student.params * itemsize for student in self.students.values()]
        for name, student in self.students.items():
            sampling, weights = planned_sampling(self.recipe, name), student.params * itemsize
            peaks.append(waiting + weights + self._forward(student, sampling, batch_size))
            peaks.append(self._teacher + max(weights + self._forward(student, sampling, 1), student.params * 4))
        if self.on_host:
            return max(peaks), max(sizes) + self._teacher + max(sizes) - max(peaks)
        return max(peaks), max(denoiser, *sizes)

    def _on_host(self, held: int, *, mapped: int = 0) -> StageMemory:
        total = PROCESS_BYTES + held + max(mapped, 0)
        return StageMemory(device=total, host=total)

    def _on_device(self, held: int, *, mapped: int = 0) -> StageMemory:
        return StageMemory(device=held, host=GPU_PROCESS_BYTES + max(mapped, 0))

    def _evaluation_disk(self) -> int:
        """Return the bytes of the latents and of the features of every generated image."""
        networks = self.recipe.evaluate.networks.model_dump(exclude_none=True)
        of_image = math.prod(self.skeleton.family.latent_shape) * _SINGLE
        return evaluated_images(self.recipe) * (of_image + len(networks) * FEATURE_BYTES)

    def disk(self, latents: int) -> RunDisk:
        """Count the files of the run.

        Args:
            latents: bytes of the cache.
        """
        settings = {name: self.recipe.variant(name)[1] for name in self.students}
        sizes = {name: checkpoint_bytes(settings[name], self.students[name].params) for name in self.students}
        checkpoints = sum(checkpoints_kept(settings[name]) * size for name, size in sizes.items()) + max(sizes.values())
        others, itemsize = self._files_of_teacher()
        pipelines = sum(others + student.params * itemsize for student in self.students.values())
        teacher = others + self.skeleton.components[self._denoiser_name] * itemsize if self._is_prepared else 0
        parts = {
            "teacher": teacher,
            "latents": latents,
            "checkpoints": checkpoints,
            "pipelines": pipelines,
            "evaluation": self._evaluation_disk(),
        }
        return RunDisk(**parts, total=sum(parts.values()))

    @property
    def _denoiser_name(self) -> str:
        return self.skeleton.family.denoiser_name

    @property
    def _is_prepared(self) -> bool:
        return not is_plain(self.recipe.teacher)

    def _files_of_teacher(self) -> tuple[int, int]:
        """Return the bytes of its files besides the denoiser, and the bytes of one weight of the denoiser on disk.

        Where the files are not there, they are taken to have the dtype of the teacher on the device.
        """
        with suppress(CondistillError, OSError):
            files = teacher_files(self.recipe.teacher)
            if on_disk := files.weight_bytes(self._denoiser_name):
                itemsize = getattr(torch, files.dtype(self._denoiser_name)).itemsize
                return files.total_bytes() - on_disk, itemsize
        others = self._teacher - self._weights[self._denoiser_name]
        return others, self.dtype.itemsize


def network_bytes(recipe: Recipe) -> int:
    """Return about the bytes of the weights of all networks of a recipe, which read images at the same time."""
    return sum(NETWORKS[name].weights_bytes for name in recipe.evaluate.networks.model_dump(exclude_none=True))


def forward_numbers(skeleton: Skeleton, model: Candidate) -> int:
    """Return how many numbers the tensors have at the peak of a denoiser evaluation of one sample."""
    denoiser = model.denoiser.eval()
    dtype: torch.dtype = next(denoiser.parameters()).dtype
    inputs = repeat_inputs(teacher_inputs(skeleton, denoiser), 1, device=_META, dtype=dtype)
    return int(_peak(lambda: denoiser(**inputs)) // dtype.itemsize)


def decoded_numbers(skeleton: Skeleton) -> int:
    """Return how many numbers the tensors have at the peak of decoding one image; 0 without an autoencoder."""
    vae: Any = skeleton.family.pipeline.components.get("vae")
    if vae is None:
        return 0
    latents = torch.empty(1, *skeleton.family.latent_shape, device=_META, dtype=vae.dtype)
    itemsize: int = vae.dtype.itemsize
    return _peak(lambda: vae.decode(latents, return_dict=False)) // itemsize


@torch.no_grad()
def _peak(work: Callable[[], object]) -> int:
    with MemoryMeter() as meter, SavedTensorsOnly(None):
        work()
    return int(meter.peak)
