from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from condistill.evaluate.models import EvaluatedModel
from condistill.pipelines.sampling import Sampling
from condistill.run.stage_directory import StageDir
from condistill.teachers.family import Family


def test_a_model_without_a_loader_is_the_denoiser_of_its_pipeline(tiny_family: Family, tmp_path: Path) -> None:
    def model(**options: object) -> EvaluatedModel:
        directory = StageDir(tmp_path, "latents", dict)
        return EvaluatedModel("one", lambda: tiny_family, Sampling(1, 1.0), directory, **options)  # type: ignore[arg-type]

    with model().loaded() as (family, denoiser):
        assert family is tiny_family
        assert denoiser is tiny_family.denoiser
    other = nn.Linear(1, 1)
    with model(load=lambda _: other).loaded() as (_, denoiser):
        assert denoiser is other
    with model().decoding() as family:
        assert family.device.type == "cpu"


class Moved:
    """A denoiser that notes where it is moved."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def to(self, device: Any) -> None:
        self.places.append(str(device))


def test_the_denoiser_of_a_pipeline_on_a_gpu_waits_on_the_host_while_another_one_works() -> None:
    denoiser = Moved()
    family: Any = SimpleNamespace(denoiser=denoiser, device=torch.device("cuda", 0), _device=None)
    with Family.denoiser_on_host(family):
        assert denoiser.places == ["cpu"]
        assert family._device == torch.device("cuda", 0)
        with Family.denoiser_on_host(family):  # it is there already, and stays
            pass
        assert denoiser.places == ["cpu"]
    assert denoiser.places == ["cpu", "cuda:0"]
    assert family._device is None
