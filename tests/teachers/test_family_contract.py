from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
from contract import FamilyContract, Prompts
from tiny import TINY

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
