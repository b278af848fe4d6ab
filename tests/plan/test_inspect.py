from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from condistill.config.sections import StudentSettings, TeacherSettings
from condistill.plan.inspect import Layer, compared_layers, inspect_pipeline, layers_of
from condistill.profiling.macs import macs
from condistill.students.derive import derive_student
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import parameters


def every(layer: Layer) -> list[Layer]:
    return [layer, *(found for child in layer.children for found in every(child))]


def test_the_parts_of_a_denoiser_add_up(tiny_skeleton: Skeleton) -> None:
    family, denoiser = tiny_skeleton.family, tiny_skeleton.denoiser
    whole = layers_of(tiny_skeleton)
    assert whole.params == parameters(denoiser)
    assert whole.macs == macs(denoiser, size=family.latent_shape[1:], text_length=family.text_length)
    assert whole.macs == sum(child.macs for child in whole.children)
    by_path = {layer.path: layer for layer in every(whole)}
    assert set(by_path) == {name for name, _ in denoiser.named_modules()}
    assert by_path["down_blocks.0"].shape == (16, 4, 4)
    assert by_path["conv_in"].macs == 8 * 8 * 16 * 4 * 9


@pytest.mark.slow
def test_the_compared_layers_are_those_of_students(tiny_skeleton: Skeleton) -> None:
    compared = compared_layers(tiny_skeleton)
    student = derive_student(tiny_skeleton.denoiser, StudentSettings(preset="b-base"), features="cross_attention")
    assert {pair.teacher for pair in student.pairs} <= set(compared["cross_attention"])
    assert {"down_blocks.0", "mid_block", "up_blocks.2"} <= set(compared["stages"])


@pytest.mark.slow
def test_the_tree_shows_layers_that_are_alike_as_one(tiny_pipeline_dir: Path) -> None:
    def shown(levels: int) -> str:
        out = io.StringIO()
        tree = inspect_pipeline(TeacherSettings(pipeline=str(tiny_pipeline_dir)), levels=levels)
        Console(file=out, width=250).print(tree)
        return out.getvalue()

    assert "down_blocks.2 DownBlock2D" in shown(1)
    assert "compared: stages" in shown(1)
    assert "resnets.0 to 1 ResnetBlock2D" in shown(2)
    assert "b-base keeps" in shown(1)
    assert "up_blocks.0: from up_blocks.0, layers 0 and 2 of 3" in shown(1)
