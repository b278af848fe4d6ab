from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import build as build_transformer

from condistill.config.sections import StudentSettings
from condistill.errors import CorruptError
from condistill.students.derive import derive_student
from condistill.students.layer_map import LAYERS_NAME, LayersRecord, chained, take

CHOICES: dict[str, dict[str, Any]] = {
    "blocks": {"preset": "b-small"},
    "width": {"width": 0.5},
    "blocks and width": {"preset": "b-small", "width": 0.5},
    "innermost stage and width": {"preset": "b-tiny", "width": 0.5},
}
"""Every way to make a U-Net smaller."""


def assert_is_cut_along(layers: Any, student: Any, teacher: Any) -> None:
    """Check that every weight that a map names is the part of the teacher's weight that the map says."""
    given, weights = teacher.state_dict(), student.state_dict()
    for name, source in layers.items():
        assert torch.equal(take(given[source.name], source.selection), weights[name]), name


def assert_is_complete(layers: Any, student: Any) -> None:
    """Check that only shortcuts are missing in a map, where the teacher adds the input unchanged."""
    assert all("conv_shortcut" in name for name in set(student.state_dict()) - set(layers))


@pytest.mark.parametrize(
    ("teacher", "choice"),
    [
        ("sd1", "blocks"),
        pytest.param("sd2", "width", marks=pytest.mark.slow),
        pytest.param("four-stages", "innermost stage and width", marks=pytest.mark.slow),
        pytest.param("sdxl", "blocks and width", marks=pytest.mark.slow),
    ],
    indirect=["teacher"],
)
def test_the_map_of_a_unet_says_where_every_weight_is_from(teacher, choice, tmp_path):
    student = derive_student(teacher, StudentSettings(**CHOICES[choice]))
    assert student.layers is not None
    assert_is_complete(student.layers, student.denoiser)
    assert_is_cut_along(student.layers, student.denoiser, teacher)
    # and the file says the same of all that a LoRA can change
    LayersRecord.of(teacher, student.layers).write(tmp_path / LAYERS_NAME)
    read = LayersRecord.read(tmp_path / LAYERS_NAME, remedy="").layer_map()
    matrices = {name for name, weight in student.denoiser.named_parameters() if weight.dim() > 1}
    assert set(read) == matrices & set(student.layers)
    assert_is_cut_along(read, student.denoiser, teacher)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flux", "pixart"])
def test_the_map_of_a_transformer_says_where_every_weight_is_from(kind):
    teacher = build_transformer(kind)
    student = derive_student(teacher, StudentSettings(depth=0.5))
    assert student.layers is not None
    assert_is_complete(student.layers, student.denoiser)
    assert_is_cut_along(student.layers, student.denoiser, teacher)


@pytest.mark.slow
def test_maps_of_a_students_student_lead_to_the_first_teacher(tiny):
    teacher = tiny()
    first = derive_student(teacher, StudentSettings(preset="b-base", width=0.75))
    second = derive_student(first.denoiser, StudentSettings(width=(8, 16, 16)))
    assert first.layers is not None
    assert second.layers is not None
    assert_is_cut_along(chained(first.layers, second.layers), second.denoiser, teacher)


@pytest.mark.slow
def test_random_weights_are_from_nowhere(tiny):
    assert derive_student(tiny(), StudentSettings(width=0.5, weights="random")).layers is None


def test_a_selection_that_is_not_there_is_damage(tmp_path):
    file = tmp_path / LAYERS_NAME
    file.write_text(
        '{"format": 1, "teacher": {}, "layers": {"a": {"teacher": "b", "outputs": 1}}, "selections": ["0"]}'
    )
    with pytest.raises(CorruptError, match="a has the selection 1 of 1"):
        LayersRecord.read(file, remedy="make it again")
