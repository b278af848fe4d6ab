from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from training import (
    PROMPTS,
    Fixed,
    losses,
    sample_at,
)

from condistill.distill import random_conditioning as rc
from condistill.distill.batches import Blend
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family

# blends of two prompts


def test_both_models_get_the_blend_of_two_prompts(objective: Any, tiny_family: Family) -> None:
    partners, weight = ["a red box", "a star", "a ball", "a dog"], [0.25, 0.0, 0.9, 0.0]
    sample = replace(sample_at([999, 500, 20, 0]), blend=Blend(partners, torch.tensor(weight, dtype=torch.float64)))
    conditions: list[Condition] = []

    def student(x_t: Tensor, timesteps: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        conditions.append(condition)
        return tiny_family.predict(tiny_family.denoiser, x_t, timesteps, condition), []

    found = losses(objective(), student, sample)
    first, second = (tiny_family.encode(p).tensors["prompt_embeds"] for p in (PROMPTS, partners))
    blended = conditions[0].tensors["prompt_embeds"]
    for i, a in enumerate(weight):
        torch.testing.assert_close(blended[i], (1 - a) * first[i] + a * second[i])
    assert torch.equal(blended[1], first[1])
    assert torch.equal(blended[3], first[3])
    assert not found.terms["output"].any()  # the teacher had the same condition


def test_output_weighting_applies_to_the_progressive_target_as_well(objective: Any) -> None:
    sample = sample_at([999, 249])
    few = {"num_inference_steps": 4}
    of = objective(few_steps=few, loss={"output_weighting": "x0"})
    predictions = of.compare(Fixed(torch.zeros(2, 4, 8, 8)), sample)
    found = of.losses(predictions)
    output = found.terms["output"]
    assert found.total[0] > output[0] * 9  # (1 - a) / a is clipped to 10 at pure noise
    torch.testing.assert_close(output, rc.mse(torch.zeros_like(predictions.teacher), predictions.teacher))
