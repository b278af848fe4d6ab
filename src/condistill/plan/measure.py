"""What a plan can measure where the device is at hand: networks of random weights, which take as long as real ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from condistill.plan.candidates import Candidate, inputs_of
from condistill.plan.cost import Job, Measured
from condistill.plan.step import batch_of
from condistill.profiling.memory import LiveMemory
from condistill.profiling.timing import seconds_of
from condistill.teachers.skeleton import Skeleton
from condistill.utils.hardware import present_torch_device
from condistill.utils.meta import plain_config


def with_random_weights(denoiser: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A denoiser of the same shape on a device; the global generators are left alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        made = type(denoiser).from_config(plain_config(denoiser)).to(dtype)
    if device.type == "cpu":
        made = made.to(memory_format=torch.channels_last)
    return made.eval().requires_grad_(False)


def measure_forward(skeleton: Skeleton, candidate: Candidate, dtype: torch.dtype) -> dict[str, float]:
    """Latency and peak memory of one forward of one sample on the present device."""
    device = present_torch_device()
    denoiser = with_random_weights(candidate.denoiser, device, dtype)
    inputs = batch_of(inputs_of(skeleton, candidate.denoiser), 1, device=device, dtype=dtype)

    @torch.no_grad()
    def forward() -> None:
        denoiser(**inputs)

    seconds = seconds_of(forward, device, repeats=3)
    weights = sum(parameter.nbytes for parameter in denoiser.parameters())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        forward()
        beyond = torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveMemory() as memory:
            forward()
        beyond = memory.peak
    return {"measured_latency_ms": 1000 * seconds, "measured_memory_bytes": weights + beyond}


def _measure_text(skeleton: Skeleton, count: int, dtype: torch.dtype) -> float:
    """Seconds of encoding one of `count` prompts, by text encoders of random weights."""
    device, seconds = present_torch_device(), 0.0
    for encoder, tokens in skeleton.text_encoders:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            made = type(encoder)._from_config(encoder.config).to(dtype).eval()
        ids = torch.ones(count, tokens, dtype=torch.int64, device=device)
        with torch.no_grad():
            seconds += seconds_of(partial(made, ids), device, repeats=3)
    return seconds / count


def measure_training(job: Job) -> Measured:
    """Seconds of the parts of a training step on the present device, and the memory of a whole one."""
    device, student = present_torch_device(), job.student.student
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    teacher = with_random_weights(job.teacher.denoiser, device, job.dtype)
    trained = with_random_weights(student.denoiser, device, torch.float32)
    maps = torch.nn.ModuleList(
        type(layer)(layer.in_channels, layer.out_channels, 1) if hasattr(layer, "in_channels") else layer
        for layer in student.maps
    )
    step = job.step(teacher, replace(student, denoiser=trained, maps=maps.to(device)))

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, job.half) if job.half else nullcontext()

    def train(taught: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
        step.loss(*taught, autocast=autocast).backward()  # type: ignore[no-untyped-call]

    teacher_sec = seconds_of(step.forward_teacher, device, repeats=3)
    taught = [step.forward_teacher()]
    student_sec = seconds_of(lambda: train(taught[0]), device, repeats=3)
    update_sec = seconds_of(step.update, device, repeats=2, prepare=lambda: train(taught[0]))
    peak = None
    if device.type == "cuda":
        taught.clear()
        torch.cuda.reset_peak_memory_stats(device)
        train(step.forward_teacher())
        step.update()
        peak = torch.cuda.max_memory_allocated(device) - before
    step.release()
    load = job.load
    text_sec = _measure_text(job.skeleton, load.compared, job.dtype)
    return Measured(teacher_sec / load.teacher_batch, student_sec / load.student_batch, text_sec, update_sec, peak)
