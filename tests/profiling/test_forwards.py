from __future__ import annotations

from typing import Any

import pytest

from condistill.config.distill import DistillSettings
from condistill.config.sections import CacheSettings
from condistill.profiling.forwards import compute, forwards_per_step


@pytest.mark.parametrize(
    ("changes", "teacher", "student"),
    [
        ({}, 8, 8),
        ({"loss": {"guidance_weight": 1.0}}, 16, 16),
        ({"path": {"start": "noise"}}, 8, 8),
        ({"path": {"guidance_scale": 3.0}}, 16, 8),
        ({"path": {"guidance_scale": 3.0, "share": 0.5}}, 12, 8),
        ({"path": {"guidance_scale": 3.0, "follow": "student"}}, 8, 16),
        ({"path": {"guidance_scale": 3.0, "follow": "moving"}}, 12, 12),
        ({"path": {"guidance_scale": 3.0}, "loss": {"guidance_weight": 1.0}}, 16, 16),
        ({"guidance_distillation": 3.0}, 16, 8),
        ({"guidance_distillation": [2, 8], "few_steps": {"num_inference_steps": 4, "teacher_steps": 3}}, 48, 8),
        ({"guidance_distillation": [2, 8], "few_steps": {"method": "consistency", "num_inference_steps": 4}}, 16, 16),
    ],
)
def test_a_step_counts_every_sample_that_passes_through_a_network(
    changes: dict[str, Any], teacher: float, student: float
) -> None:
    assert forwards_per_step(DistillSettings.model_validate({"batch_size": 8, **changes})) == (teacher, student)


def test_a_teacher_that_is_told_its_scale_is_asked_once_for_what_is_guided() -> None:
    settings = DistillSettings.model_validate({"steps": 3, "batch_size": 8, "guidance_distillation": [2, 8]})
    assert forwards_per_step(settings, teacher_takes_guidance=True) == (8, 8)
    assert compute(settings, CacheSettings(), teacher_takes_guidance=True)["teacher_forwards"] == 24


def test_a_cache_drawn_with_folded_guidance_took_one_forward_a_step() -> None:
    cache, settings = CacheSettings(size=10, num_inference_steps=25, guidance_scale=3.0), DistillSettings()
    assert compute(settings, cache)["cache_forwards"] == 2 * 250
    assert compute(settings, cache, cache_is_guided=False)["cache_forwards"] == 250


def test_the_cache_is_counted_only_where_it_is_used() -> None:
    cache = CacheSettings(size=10, num_inference_steps=25, guidance_scale=3.0)

    def cached(**path: Any) -> float:
        settings = DistillSettings.model_validate({"steps": 2, "batch_size": 8, "path": path or None})
        return compute(settings, cache)["cache_forwards"]

    assert cached() == cached(start="cache") == cached(start="noise", share=0.5) == 10 * 25 * 2
    assert cached(start="noise") == 0
