"""The table of parameter counts in docs/students.md, counted anew on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import UNet2DConditionModel

from condistill.errors import CondistillError
from condistill.miniature.build import build_denoiser
from condistill.settings import BlockPreset, WidthPreset
from condistill.students import derive_student, parameters

DOCUMENT = Path(__file__).parents[2] / "docs" / "students.md"
SD21 = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}


def documented() -> dict[str, dict[str, str]]:
    """Count by teacher and row, as written."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| | SD-1.4"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    heads, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[start:end]]
    return {name: {row[0]: row[column] for row in rows} for column, name in enumerate(heads) if name}


def teacher_named(name: str, sd14: UNet2DConditionModel) -> UNet2DConditionModel:
    with torch.device("meta"):
        if name == "miniature":
            return build_denoiser()
        return UNet2DConditionModel.from_config({**sd14.config, **SD21}) if name == "SD-2.1" else sd14


@pytest.mark.parametrize(
    "name",
    ["SD-1.4", "SD-2.1", "miniature"],
)
@pytest.mark.slow
def test_documented_sizes_are_what_is_counted(name: str, sd14: UNet2DConditionModel) -> None:
    teacher = teacher_named(name, sd14)
    counted = {"teacher": f"{parameters(teacher):,}"}
    for preset in (*get_args(BlockPreset), *get_args(WidthPreset)):
        try:
            counted[preset] = f"{parameters(derive_student(teacher, preset=preset, width=None).denoiser):,}"
        except CondistillError as error:
            counted[preset] = "-" if "norm_num_groups" in str(error) else str(error)
    assert documented()[name] == counted


def test_every_column_of_the_table_is_counted() -> None:
    assert list(documented()) == ["SD-1.4", "SD-2.1", "miniature"]
