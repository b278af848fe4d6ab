"""The parameter counts in docs/students.md are those of students on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import UNet2DConditionModel

from condistill.config.sections import BlockPreset, StudentSettings, WidthPreset
from condistill.errors import CondistillError
from condistill.miniature.build import build_denoiser
from condistill.students.derive import derive_student
from condistill.utils.meta import parameters

DOCUMENT = Path(__file__).parents[2] / "docs" / "students.md"
TEACHERS = ["SD-1.4", "SD-2.1", "SDXL", "miniature"]


def documented() -> dict[str, dict[str, str]]:
    """Count by teacher and row, as written."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| | SD-1.4"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    heads, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[start:end]]
    return {name: {row[0]: row[column] for row in rows} for column, name in enumerate(heads) if name}


def teacher_named(name: str, full_size: Callable[[str], UNet2DConditionModel]) -> UNet2DConditionModel:
    if name == "miniature":
        with torch.device("meta"):
            return build_denoiser()
    return full_size(name)


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.slow
def test_the_documented_sizes_are_the_counted_ones(name: str, full_size: Callable[[str], UNet2DConditionModel]) -> None:
    teacher = teacher_named(name, full_size)
    counted = {"teacher": f"{parameters(teacher):,}"}
    for preset in (*get_args(BlockPreset), *get_args(WidthPreset)):
        try:
            student = derive_student(teacher, StudentSettings(preset=preset))
            counted[preset] = f"{parameters(student.denoiser):,}"
        except CondistillError as error:
            unfit = any(reason in str(error) for reason in ("norm_num_groups", "for Stable Diffusion XL"))
            counted[preset] = "-" if unfit else str(error)
    assert documented()[name] == counted


def test_every_column_of_the_table_is_counted() -> None:
    assert list(documented()) == TEACHERS
