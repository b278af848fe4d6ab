from __future__ import annotations

import copy

import torch

from condistill.config.sections import StudentSettings
from condistill.profiling.memory import MemoryMeter, peak_memory
from condistill.students.derive import derive_student
from condistill.teachers.family import Family


def test_the_peak_is_the_most_that_is_alive_at_once() -> None:
    with MemoryMeter() as meter:
        first = torch.zeros(1000)
        second = first + 1
        third = second + 1  # 12,000 bytes alive
        del first, second
        fourth = third + 1  # 8,000
        del third
        assert meter.now == fourth.nbytes == 4000
    assert meter.peak == 12_000


def test_views_and_in_place_operations_need_no_memory() -> None:
    with MemoryMeter() as meter:
        values = torch.zeros(1000)
        values.view(10, 100).t()[3].add_(1)
        values[:7].mul_(2)
    assert meter.peak == 4000


def test_tensors_from_before_are_not_counted() -> None:
    layer, values = torch.nn.Linear(100, 100).requires_grad_(False), torch.zeros(5, 100)
    with MemoryMeter() as meter:
        layer(values.view(1, 5, 100))
    assert meter.peak == 2000


def test_the_peak_is_above_the_weights_and_grows_with_the_batch(tiny_family: Family) -> None:
    denoiser = tiny_family.denoiser
    weights = sum(p.nbytes for p in denoiser.parameters())
    one, eight = (peak_memory(tiny_family, denoiser, batch_size=n) for n in (1, 8))
    assert weights < one < eight
    assert 6 < (eight - weights) / (one - weights) < 10


def test_half_precision_weights_count_as_they_are(tiny_family: Family) -> None:
    half = copy.deepcopy(tiny_family.denoiser).to(torch.bfloat16)
    assert peak_memory(tiny_family, half) < 0.6 * peak_memory(tiny_family, tiny_family.denoiser)


def test_a_smaller_student_needs_less_memory(tiny_family: Family) -> None:
    student = derive_student(tiny_family.denoiser, StudentSettings(width=0.5)).denoiser
    assert peak_memory(tiny_family, student) < peak_memory(tiny_family, tiny_family.denoiser)
