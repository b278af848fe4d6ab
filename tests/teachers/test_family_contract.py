from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from contract import FamilyContract, Prompts
from tiny import TINY

import condistill
from condistill.teachers.family import Family
from condistill.teachers.registry import FAMILIES


class TestEveryFamily(FamilyContract):
    @pytest.fixture(params=FAMILIES)
    def family(self, request: pytest.FixtureRequest, tiny_teacher: Callable[[str], Family]) -> Family:
        return tiny_teacher(request.param)

    @pytest.fixture
    def prompts(self, family: Family) -> Prompts:
        return TINY[family.name].prompts


def test_every_family_has_a_tiny_pipeline() -> None:
    assert set(TINY) == set(FAMILIES)


def test_families_with_the_same_denoiser_class_agree_on_it() -> None:
    for one, other in combinations(FAMILIES.values(), 2):
        if one.denoiser_class == other.denoiser_class:
            assert one.can_cut_width == other.can_cut_width
            assert one.layer_lists == other.layer_lists
            assert one.guidance == other.guidance


def test_no_other_package_names_a_class_or_a_config_key_of_one_family() -> None:
    names = {"JointTransformerBlock"}
    for family in FAMILIES.values():
        names |= {*family.pipeline_classes, family.denoiser_class, family.guidance.config_key or family.name}
        names |= {layers.joint_class for layers in family.layer_lists if layers.joint_class}
        names |= {key for layers in family.layer_lists for key in (layers.count_key, *layers.index_keys)}
    names -= {"UNet2DConditionModel"}  # of which students/ removes blocks and channels
    source = Path(condistill.__file__).parent
    found = [
        f"{file.relative_to(source)}: {name}"
        for file in source.rglob("*.py")
        if file.relative_to(source).parts[0] not in ("teachers", "miniature")
        and "single_file" not in file.parts  # the layouts of other programs, one for each class
        for name in sorted({*re.findall(rf"\b(?:{'|'.join(names)})\b", file.read_text(encoding="utf-8"))})
    ]
    assert not found
