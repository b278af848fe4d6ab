from __future__ import annotations

from typing import Any

import pytest

from condistill.config.distill import DistillSettings
from condistill.config.sections import CacheSettings
from condistill.pipelines.sampling import Sampling
from condistill.profiling.forwards import MicroBatch, SampleCost, TrainingForwards, evaluations_per_image


@pytest.mark.parametrize(
    ("config", "guidance_scale", "evaluations"),
    [({}, 3.0, 50), ({}, 1.0, 25), ({"time_cond_proj_dim": 256}, 3.0, 25)],
)
def test_guidance_needs_two_evaluations_per_step_unless_it_is_distilled(
    tiny: Any, config: dict[str, Any], guidance_scale: float, evaluations: int
) -> None:
    assert evaluations_per_image(Sampling(25, guidance_scale), tiny(**config)) == evaluations


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
def test_every_forward_of_a_sample_is_counted(changes: dict[str, Any], teacher: float, student: float) -> None:
    cost = SampleCost.of(DistillSettings.model_validate({"batch_size": 8, **changes}))
    assert (8 * cost.teacher, 8 * cost.student) == (teacher, student)
    assert cost.forwards == cost.teacher + cost.student


@pytest.mark.parametrize(
    ("changes", "prompts"),
    [
        ({}, 1),
        ({"loss": {"guidance_weight": 1.0}}, 2),
        ({"guidance_distillation": 3.0}, 2),
        ({"path": {"guidance_scale": 3.0}}, 2),
        ({"path": {"guidance_scale": 1.0}}, 1),
        ({"conditioning": {"prompt_choice": {"interpolate": 0.5}}}, 2),
        ({"conditioning": {"prompt_choice": {"interpolate": 0.5}}, "guidance_distillation": 3.0}, 3),
    ],
)
def test_every_prompt_of_a_sample_is_counted(changes: dict[str, Any], prompts: int) -> None:
    assert SampleCost.of(DistillSettings.model_validate(changes)).prompts == prompts


@pytest.mark.parametrize(
    ("changes", "takes_guidance", "expected"),
    [
        ({}, False, (4, 4, 4)),
        ({"micro_batch_size": 2}, False, (2, 2, 2)),
        ({"loss": {"guidance_weight": 1.0}}, False, (4, 8, 8)),
        ({"guidance_distillation": 3.0}, False, (4, 8, 4)),
        ({"guidance_distillation": (2.0, 3.0)}, True, (4, 4, 4)),
    ],
)
def test_a_micro_batch_has_the_forwards_of_its_samples(
    changes: dict[str, Any], takes_guidance: bool, expected: tuple[int, ...]
) -> None:
    settings = DistillSettings.model_validate({"batch_size": 4, **changes})
    batch = MicroBatch.of(settings, teacher_takes_guidance=takes_guidance)
    assert (batch.samples, batch.teacher, batch.student) == expected


def test_processes_share_a_batch() -> None:
    assert MicroBatch.of(DistillSettings(batch_size=4), processes=4).samples == 1


def test_a_teacher_that_takes_the_guidance_scale_needs_one_forward_for_a_guided_prediction() -> None:
    settings = DistillSettings.model_validate({"steps": 3, "batch_size": 8, "guidance_distillation": [2, 8]})
    assert SampleCost.of(settings, teacher_takes_guidance=True).teacher == 1
    forwards = TrainingForwards.of(settings, CacheSettings(), evaluations_per_image=25, teacher_takes_guidance=True)
    assert (forwards.teacher, forwards.student) == (24, 24)


def test_the_cache_is_counted_only_where_it_is_used() -> None:
    def cached(**path: Any) -> float:
        settings = DistillSettings.model_validate({"steps": 2, "batch_size": 8, "path": path or None})
        return TrainingForwards.of(settings, CacheSettings(size=10), evaluations_per_image=50).cache

    assert cached() == cached(start="cache") == cached(start="noise", share=0.5) == 10 * 50
    assert cached(start="noise") == 0
