"""Measure networks with random weights on the present device: they take as long as trained ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin

from condistill.plan.candidates import Candidate, teacher_inputs
from condistill.plan.cost import MeasuredStep, TrainingJob
from condistill.plan.step import repeat_inputs
from condistill.profiling.memory import peak_bytes
from condistill.profiling.timing import median_seconds
from condistill.teachers.skeleton import Skeleton
from condistill.utils.hardware import default_device
from condistill.utils.meta import plain_config


def with_random_weights(denoiser: ModelMixin, device: torch.device, dtype: torch.dtype) -> ModelMixin:
    """Return a denoiser of the same shapes on a device; the global random state does not change."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        copy = type(denoiser).from_config(plain_config(denoiser)).to(dtype)
    if device.type == "cpu":
        copy = copy.to(memory_format=torch.channels_last)
    return copy.eval().requires_grad_(False)


def measure_forward(skeleton: Skeleton, candidate: Candidate, dtype: torch.dtype) -> tuple[float, int]:
    """Measure one forward of one sample on the present device.

    Returns:
        Seconds; and bytes of the weights and of the peak beyond them.
    """
    device = default_device()
    denoiser = with_random_weights(candidate.denoiser, device, dtype)
    inputs = repeat_inputs(teacher_inputs(skeleton, candidate.denoiser), 1, device=device, dtype=dtype)

    @torch.no_grad()
    def forward() -> None:
        denoiser(**inputs)

    seconds = median_seconds(forward, device, repeats=3)
    weights = sum(parameter.nbytes for parameter in denoiser.parameters())
    return seconds, weights + peak_bytes(forward, device)


def measure_step(job: TrainingJob) -> MeasuredStep:
    """Measure the parts of a training step on the present device and, on a GPU, the memory of a whole step."""
    device, student = default_device(), job.student.student
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    teacher = with_random_weights(job.teacher.denoiser, device, job.dtype)
    denoiser = with_random_weights(student.denoiser, device, torch.float32)
    maps = torch.nn.ModuleList(
        type(layer)(layer.in_channels, layer.out_channels, 1) if hasattr(layer, "in_channels") else layer
        for layer in student.maps
    )
    step = job.step(teacher, replace(student, denoiser=denoiser, maps=maps.to(device)))

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, job.half) if job.half else nullcontext()

    def train(taught: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
        step.loss(*taught, autocast=autocast).backward()  # type: ignore[no-untyped-call]

    teacher_sec = median_seconds(step.forward_teacher, device, repeats=3)
    taught = [step.forward_teacher()]
    student_sec = median_seconds(lambda: train(taught[0]), device, repeats=3)
    update_sec = median_seconds(step.update, device, repeats=2, prepare=lambda: train(taught[0]))
    peak = None
    if device.type == "cuda":
        taught.clear()
        torch.cuda.reset_peak_memory_stats(device)
        train(step.forward_teacher())
        step.update()
        peak = torch.cuda.max_memory_allocated(device) - before
    step.release()
    batch = job.micro_batch
    text_sec = _prompt_sec(job.skeleton, batch.samples, job.dtype)
    return MeasuredStep(teacher_sec / batch.teacher, student_sec / batch.student, text_sec, update_sec, peak)


def _prompt_sec(skeleton: Skeleton, count: int, dtype: torch.dtype) -> float:
    """Return the seconds per prompt of encoding `count` prompts, with text encoders of random weights."""
    device, seconds = default_device(), 0.0
    for encoder, tokens in skeleton.text_encoders:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            copy = type(encoder)._from_config(encoder.config).to(dtype).eval()
        ids = torch.ones(count, tokens, dtype=torch.int64, device=device)
        with torch.no_grad():
            seconds += median_seconds(partial(copy, ids), device, repeats=3)
    return seconds / count
