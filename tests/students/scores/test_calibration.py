from __future__ import annotations

from typing import Any

import torch

from condistill.students.scores.calibration import Calibration, CalibrationBatch, calibration_batches
from condistill.teachers.condition import Condition


def batches(family: Any, cache: Any, *, samples: int = 64, **settings: Any) -> list[CalibrationBatch]:
    calibration = Calibration(cache, **{"seed": 0, "batch_size": 4, **settings})
    return list(calibration_batches(family, calibration, samples=samples))


def test_samples_have_all_noise_levels_and_do_not_depend_on_the_batch_size(tiny_family, tiny_cache):
    def joined(**settings: Any) -> Any:
        found = batches(tiny_family, tiny_cache, samples=10, **settings)
        return torch.cat([b.x_t for b in found]), torch.cat([b.timesteps for b in found])

    x_t, timesteps = joined(batch_size=10)
    assert (timesteps // 100).tolist() == list(range(10))
    assert torch.equal(joined()[0], x_t)
    assert not torch.equal(joined(seed=1)[0], x_t)


def test_a_teacher_that_takes_a_guidance_scale_gets_scales_of_the_range(tiny_family, tiny_cache):
    found = batches(tiny_family, tiny_cache, samples=8, guidance_range=(2.0, 3.0))
    scales = torch.cat([b.condition.tensors["guidance_scale"] for b in found])
    assert len(set(scales.tolist())) == 8
    assert ((scales >= 2) & (scales <= 3)).all()


def test_a_teacher_with_an_image_condition_gets_that_of_training(tiny_family, tiny_cache, monkeypatch):
    def training_condition(condition, x_0, uniform):
        return Condition({**condition.tensors, "context": x_0[:, 0, 0, 0] + uniform})

    monkeypatch.setattr(tiny_family, "has_image_condition", True, raising=False)
    monkeypatch.setattr(tiny_family, "training_condition", training_condition)
    contexts = [
        torch.cat([b.condition.tensors["context"] for b in batches(tiny_family, tiny_cache, batch_size=n)])
        for n in (8, 64)
    ]
    assert torch.equal(*contexts)
    assert len(set(contexts[0].tolist())) == 64
