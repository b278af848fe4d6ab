"""Fixtures of tiny trainings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from training import SEED, Make, RecordingAccelerator, settings_of

from condistill.cache.latents import LatentCache
from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings
from condistill.config.yaml_tree import merge
from condistill.distill.batches import batch_source
from condistill.distill.objective import Objective
from condistill.distill.trainer import Trainer
from condistill.prompts.pool import PromptPool
from condistill.students.derive import Student, derive_student
from condistill.teachers.family import Family


@pytest.fixture(scope="module")
def accelerator() -> RecordingAccelerator:
    return RecordingAccelerator(cpu=True)


@pytest.fixture(scope="module")
def narrow(tiny_family: Family) -> Student:
    """A student of half its teacher's width; copy it before training."""
    return derive_student(tiny_family.denoiser, StudentSettings(width=0.5))


@pytest.fixture
def make(
    tiny_family: Family,
    tiny_cache: LatentCache,
    tiny_pool: PromptPool,
    accelerator: RecordingAccelerator,
    narrow: Student,
) -> Make:
    """Build a trainer of a narrow student with the memory layout of a CPU; keyword arguments change its settings."""

    def build(directory: Path, *, student: Student | None = None, **changes: Any) -> Trainer:
        if student is None:
            student = copy.deepcopy(narrow)
            student.denoiser.to(memory_format=torch.channels_last)
        settings = settings_of(**changes)
        source = batch_source(tiny_cache, tiny_pool, settings, seed=SEED, accelerator=accelerator)
        return Trainer(tiny_family, student, source, settings, directory=directory, accelerator=accelerator)

    return build


@pytest.fixture
def objective(tiny_family: Family) -> Iterator[Any]:
    built: list[Objective] = []

    def build(**settings: Any) -> Objective:
        validated = DistillSettings.model_validate(merge({"batch_size": 4, "loss": {"feature_weight": 0.0}}, settings))
        built.append(Objective(tiny_family, validated, Accelerator(cpu=True), []))
        return built[-1]

    yield build
    for each in built:
        each.close()
