"""The memory of a training step that `condistill plan` counts on the meta device is that of a real step on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers", reason="counts the memory of a diffusers model, and diffusers is not installed")

import torch
from diffusers import UNet2DConditionModel

from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings
from condistill.plan.memory import training_peak
from condistill.plan.step import SyntheticStep
from condistill.profiling.forwards import MicroBatch
from condistill.profiling.shapes import example_inputs
from condistill.students.derive import derive_student
from condistill.utils.meta import build_on_meta

# large enough that the tensors of a step, about 1 GiB, outweigh the workspaces of kernels
CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def step_of(teacher: Any, **settings: Any) -> SyntheticStep:
    distill = DistillSettings.model_validate({"batch_size": 8, **settings})
    student = derive_student(teacher, StudentSettings(width=0.5))
    return SyntheticStep(teacher, student, distill, example_inputs(teacher), MicroBatch.of(distill))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_peak_of_a_step_is_the_planned_one(
    device: torch.device, half: torch.dtype | None, *, checkpointing: bool
) -> None:
    changes: dict[str, Any] = {"gradient_checkpointing": checkpointing}
    planned = training_peak(step_of(build_on_meta(UNet2DConditionModel, CONFIG), **changes), half)
    with torch.device(device):
        teacher = UNet2DConditionModel(**CONFIG)
    step = step_of(teacher, **changes)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, half or torch.float32, enabled=half is not None)

    for _ in range(2):  # the first step allocates workspaces that stay
        step.trained.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with autocast():
            teacher_prediction, teacher_features = step.forward_teacher()
        step.loss(teacher_prediction, teacher_features, autocast).backward()
        real = torch.cuda.max_memory_allocated(device) - before
        del teacher_prediction, teacher_features
    # convolutions take temporary workspaces on top, and the allocator rounds sizes up
    assert 0.9 * planned < real < 1.3 * planned
