from __future__ import annotations

from typing import Any

import pytest
from diffusers import ModelMixin
from full_size import DATA

from condistill.config.sections import StudentSettings, TeacherSettings
from condistill.students.derive import student_shapes
from condistill.teachers.applications import APPLICATIONS, verdicts
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.meta import plain_config

LOADS: dict[str, list[tuple[dict[str, Any], dict[str, bool]]]] = {
    "sd14": [
        ({"preset": "b-base"}, {"ComfyUI": True, "stable-diffusion.cpp": False}),
        ({"preset": "b-tiny"}, {"ComfyUI": True, "stable-diffusion.cpp": True}),
        ({"preset": "c-base"}, {"ComfyUI": False, "stable-diffusion.cpp": False}),
        ({"width": 0.9}, {"ComfyUI": False, "stable-diffusion.cpp": False}),
    ],
    "sdxl": [
        ({"preset": "b-base"}, {"ComfyUI": False}),
        ({"preset": "koala-700m"}, {"ComfyUI": True}),
        ({"preset": "koala-1b"}, {"ComfyUI": True}),
        ({"preset": "c-base"}, {"ComfyUI": False}),
    ],
    "sd35_medium": [({"depth": 0.5}, {"ComfyUI": False})],
    "flux_dev": [({"depth": 0.5}, {"ComfyUI": True})],
    "sana_1600m": [({"depth": 0.5}, {})],  # was not looked at
}
"""By teacher: students, and where they load."""


@pytest.mark.parametrize(
    "name", [each if each == "sd14" else pytest.param(each, marks=pytest.mark.slow) for each in LOADS]
)
def test_what_other_applications_load_is_what_their_sources_say(name: str) -> None:
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(DATA / name)))
    for settings, expected in LOADS[name]:
        student: ModelMixin = student_shapes(skeleton.denoiser, StudentSettings.model_validate(settings))
        found = verdicts(skeleton.family.name, plain_config(skeleton.denoiser), plain_config(student))
        assert {application.name: verdict.loads for application, verdict in found} == expected, settings
        assert all(verdict.reason for _, verdict in found)


def test_a_small_unet_has_no_width_that_other_applications_know() -> None:
    tiny = {"block_out_channels": [32, 64], "layers_per_block": 1, "mid_block_type": None}
    assert {verdict.loads for _, verdict in verdicts("stable_diffusion", tiny, tiny)} == {False}


def test_every_fact_has_a_source() -> None:
    assert all(application.source for application in APPLICATIONS.values())
    assert verdicts("a family that is not known", {}, {}) == []
