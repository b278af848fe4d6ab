from __future__ import annotations

from typing import Any

import pytest
from diffusers import ModelMixin
from full_size import DATA

from condistill.config.sections import StudentSettings, TeacherSettings
from condistill.export import EXPORTERS, Shape, loads_in
from condistill.students.derive import student_shapes
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.meta import plain_config

BOTH = {"ComfyUI": True, "stable-diffusion.cpp": True}
LOADS: dict[str, list[tuple[dict[str, Any], dict[str, bool]]]] = {
    "sd14": [
        ({"preset": "b-base"}, {"ComfyUI": True, "stable-diffusion.cpp": False}),
        ({"preset": "b-tiny"}, {"ComfyUI": True, "stable-diffusion.cpp": True}),
        ({"preset": "c-base"}, {"ComfyUI": False, "stable-diffusion.cpp": True}),
        ({"width": 0.9}, {"ComfyUI": False, "stable-diffusion.cpp": True}),  # it reads the width of the first stage
    ],
    "sdxl": [
        ({"preset": "b-base"}, {"ComfyUI": False}),
        ({"preset": "koala-700m"}, {"ComfyUI": True}),
        ({"preset": "koala-1b"}, {"ComfyUI": True}),
        ({"preset": "c-base"}, {"ComfyUI": False}),
    ],
    "flux_dev": [({"depth": 0.5}, BOTH), ({}, BOTH)],
    "pixart_sigma": [({"depth": 0.5}, {"ComfyUI": True, "stable-diffusion.cpp": False})],
    "sd35_medium": [({"depth": 0.75}, dict.fromkeys(BOTH, False)), ({}, BOTH)],
    "sana_1600m": [({"depth": 0.5}, {"ComfyUI": False})],
}
"""By teacher: students, and where they load; without settings, the teacher itself."""


@pytest.mark.parametrize(
    "name", [each if each == "sd14" else pytest.param(each, marks=pytest.mark.slow) for each in LOADS]
)
def test_what_other_programs_load_is_what_their_sources_say(name: str) -> None:
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(DATA / name)))
    for settings, expected in LOADS[name]:
        student: ModelMixin = skeleton.denoiser
        if settings:
            student = student_shapes(student, StudentSettings.model_validate(settings))
        shape = Shape(
            type(skeleton.family.pipeline).__name__,
            type(student).__name__,
            plain_config(student),
            plain_config(skeleton.denoiser),
        )
        found = {each.application: each for each in loads_in(shape)}
        assert {application: found[application].loads for application in expected} == expected, settings
        assert all(each.reason and each.source for each in found.values())


def test_a_small_unet_has_no_width_that_other_programs_know() -> None:
    tiny = {"block_out_channels": [32, 64], "layers_per_block": 1, "mid_block_type": None}
    shape = Shape("StableDiffusionPipeline", "UNet2DConditionModel", tiny, tiny)
    assert {each.loads for each in loads_in(shape)} == {False}


def test_a_denoiser_without_a_known_layout_is_refused_with_its_class() -> None:
    shape = Shape("SomePipeline", "SomeTransformer", {})
    for exporter in (EXPORTERS["comfyui"], EXPORTERS["sdcpp"]):
        assert any("SomeTransformer" in reason for reason in exporter.check(shape))
