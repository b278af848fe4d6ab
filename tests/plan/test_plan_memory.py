"""The memory of a step that is counted on the meta device is that of the tensors of a real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings
from condistill.plan.memory import training_peak
from condistill.plan.step import SyntheticStep
from condistill.profiling.forwards import MicroBatch
from condistill.profiling.memory import MemoryMeter
from condistill.profiling.shapes import example_inputs
from condistill.students.derive import derive_student
from condistill.utils.meta import build_on_meta, parameters

CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def step_of(teacher: Any, **settings: Any) -> SyntheticStep:
    distill = DistillSettings.model_validate({"batch_size": 4, **settings})
    student = derive_student(teacher, StudentSettings(width=0.5))
    return SyntheticStep(teacher, student, distill, example_inputs(teacher), MicroBatch.of(distill))


def planned(half: torch.dtype | None = None, **settings: Any) -> int:
    return training_peak(step_of(build_on_meta(UNet2DConditionModel, CONFIG), **settings), half)


def real_peak(step: SyntheticStep) -> int:
    with MemoryMeter() as meter:
        step.loss(*step.forward_teacher()).backward()
    return int(meter.peak)


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_peak_of_a_step_is_that_of_its_tensors(*, checkpointing: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        real = real_peak(step_of(UNet2DConditionModel(**CONFIG), gradient_checkpointing=checkpointing))
    assert planned(gradient_checkpointing=checkpointing) == pytest.approx(real, rel=0.08)


@pytest.mark.slow
def test_gradients_of_earlier_micro_batches_are_there_at_the_peak() -> None:
    with torch.random.fork_rng(devices=[]):
        step = step_of(UNet2DConditionModel(**CONFIG))
    with MemoryMeter() as meter:
        for _ in range(2):
            step.loss(*step.forward_teacher()).backward()
    counted = training_peak(step_of(build_on_meta(UNet2DConditionModel, CONFIG)), None, accumulates=True)
    assert counted == pytest.approx(meter.peak, rel=0.08)
    assert counted > planned()


@pytest.mark.slow
def test_checkpointing_features_and_half_precision_change_the_peak_as_they_should() -> None:
    whole = planned()
    assert planned(gradient_checkpointing=True) < 0.7 * whole
    assert planned(loss={"feature_weight": 0.0}) < whole
    assert 0.5 * whole < planned(torch.bfloat16) < 0.9 * whole
    assert planned(micro_batch_size=2) < 0.6 * whole


@pytest.mark.slow
def test_gradients_are_among_the_peak() -> None:
    step = step_of(build_on_meta(UNet2DConditionModel, CONFIG))
    assert training_peak(step, None) > parameters(step.trained.denoiser) * 4
    assert all(parameter.grad is not None for parameter in step.trained.denoiser.parameters())


@pytest.mark.slow
def test_a_second_step_of_the_same_student_needs_as_much() -> None:
    teacher = build_on_meta(UNet2DConditionModel, CONFIG)
    student = derive_student(teacher, StudentSettings(width=0.5))
    distill = DistillSettings(batch_size=1, gradient_checkpointing=True)  # the peak is at the end of the backward
    peaks = []
    for _ in range(2):
        step = SyntheticStep(teacher, student, distill, example_inputs(teacher, size=(2, 2)), MicroBatch.of(distill))
        peaks.append(training_peak(step, None))
        step.release()
    assert peaks[0] == peaks[1]
