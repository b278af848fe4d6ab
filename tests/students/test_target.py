from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_transformers import build

from condistill.config.sections import StudentSettings
from condistill.errors import CondistillError
from condistill.profiling.macs import macs
from condistill.students.derive import derive_student
from condistill.students.target import meet_target
from condistill.utils.meta import parameters

WIDE = {"block_out_channels": (32, 64, 64)}
SIZE = {"size": (8, 8), "text_length": 4}


def student_of(teacher: Any, settings: StudentSettings) -> Any:
    return derive_student(teacher, settings).denoiser


@pytest.mark.parametrize("share", ["0.4x", 0.4])
def test_a_share_is_written_as_a_number_or_as_a_multiple(share: Any) -> None:
    target = StudentSettings.model_validate({"target": {"params": share}}).target
    assert target is not None
    assert target.params == 0.4


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"target": {}}, "give params, macs or latency"),
        ({"target": {"macs": 1.0}}, "less than 1"),
        ({"target": {"macs": "half"}}, "valid number"),
        ({"target": {"macs": 0.5}, "width": 0.5}, "target chooses the width or the depth; leave out one"),
        ({"target": {"macs": 0.5}, "preset": "c-base"}, "target chooses the width or the depth; leave out one"),
    ],
)
def test_a_target_without_a_share_or_with_a_size_is_refused(student: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StudentSettings.model_validate(student)


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"params": 0.4}, {"macs": 0.5}, {"params": 0.5, "macs": 0.3}])
def test_the_largest_width_within_the_target_is_chosen(tiny: Any, target: dict[str, float]) -> None:
    teacher = tiny(**WIDE)
    chosen = meet_target(teacher, StudentSettings.model_validate({"target": target}), **SIZE)
    assert chosen.target is None

    def shares(settings: StudentSettings) -> dict[str, float]:
        student = student_of(teacher, settings)
        return {
            "params": parameters(student) / parameters(teacher),
            "macs": macs(student, **SIZE) / macs(teacher, **SIZE),
        }

    assert all(shares(chosen)[name] <= share for name, share in target.items())
    groups = teacher.config.norm_num_groups
    larger = chosen.model_copy(update={"width": tuple(width + groups for width in chosen.width)})
    assert any(shares(larger)[name] > share for name, share in target.items())


@pytest.mark.slow
def test_blocks_are_removed_first_and_what_is_left_is_narrowed(tiny: Any) -> None:
    settings = StudentSettings.model_validate({"preset": "b-base", "target": {"macs": 0.4}})
    teacher = tiny(**WIDE)
    chosen = meet_target(teacher, settings, **SIZE)
    assert chosen.preset == "b-base"
    assert macs(student_of(teacher, chosen), **SIZE) <= 0.4 * macs(teacher, **SIZE)
    alone = meet_target(teacher, StudentSettings.model_validate({"target": {"macs": 0.4}}), **SIZE)
    assert sum(chosen.width) > sum(alone.width)


@pytest.mark.slow
def test_a_transformer_keeps_as_many_layers_as_fit() -> None:
    teacher = build("dit")
    layers = teacher.config.num_layers
    sizes = [parameters(student_of(teacher, StudentSettings(depth=n / layers))) for n in range(1, layers)]
    assert all(a < b for a, b in pairwise(sizes))
    for count, size in enumerate(sizes, start=1):
        share = size / parameters(teacher)
        chosen = meet_target(teacher, StudentSettings.model_validate({"target": {"params": share + 1e-9}}), **SIZE)
        assert chosen.depth == count / layers


def test_channels_of_a_transformer_are_not_chosen() -> None:
    settings = StudentSettings.model_validate({"target": {"params": 0.5}, "importance": "taylor"})
    with pytest.raises(CondistillError, match=r"importance 'taylor' .* DiTTransformer2DModel is met by depth"):
        meet_target(build("dit"), settings, **SIZE)


@pytest.mark.slow
def test_latency_is_timed_or_else_a_share_of_the_macs(tiny: Any) -> None:
    teacher = tiny(**WIDE)
    settings = StudentSettings.model_validate({"target": {"latency": 0.5}})
    by_work = meet_target(teacher, StudentSettings.model_validate({"target": {"macs": 0.5}}), **SIZE)
    assert meet_target(teacher, settings, **SIZE).width == by_work.width

    def timer(denoiser: Any) -> float:
        assert denoiser.device.type == "meta"
        return float(denoiser.config.block_out_channels[0])  # as slow as its first stage is wide

    chosen = meet_target(teacher, settings, sec_per_forward=timer, **SIZE)
    assert chosen.width[0] == 16


@pytest.mark.slow
def test_a_target_that_no_student_meets_is_refused_with_the_smallest_student(tiny: Any) -> None:
    with pytest.raises(CondistillError, match=r"student.target \(macs 0.0001\); the smallest shape has macs 0\."):
        meet_target(tiny(), StudentSettings.model_validate({"target": {"macs": 0.0001}}), **SIZE)
