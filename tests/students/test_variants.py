"""Every variant of a recipe is derived, or refused, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from full_size import DATA

from condistill.config.recipe import Recipe
from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.students.derive import Student
from condistill.students.guidance import GUIDANCE_EMBEDDING
from condistill.students.variants import derive_variants
from condistill.teachers.family import Family
from condistill.teachers.skeleton import Skeleton, teacher_skeleton

RecipeOf = Callable[..., Recipe]


@pytest.fixture
def derive(tiny_skeleton: Skeleton, tiny_pipeline_dir: Path, recipe_of: RecipeOf) -> Callable[..., dict[str, Student]]:
    def variants(student: dict[str, Any] | None = None, *, on_refusal: Any = None, **sections: Any) -> Any:
        recipe = recipe_of(tiny_pipeline_dir, student or {"width": 0.5}, **sections)
        options = {} if on_refusal is None else {"on_refusal": on_refusal}
        return derive_variants(recipe, tiny_skeleton.family, **options)

    return variants


def test_variants_are_shapes_and_a_student_can_be_the_teacher_of_another(derive: Any) -> None:
    students = derive(variants={"first": {}, "second": {"teacher": "first"}})
    assert list(students) == ["first", "second"]
    widths = [tuple(student.denoiser.config.block_out_channels) for student in students.values()]
    assert widths == [(8, 16, 16), (4, 8, 8)]
    assert {p.device.type for student in students.values() for p in student.denoiser.parameters()} == {"meta"}


def test_a_loaded_teacher_gives_the_same_shapes(
    derive: Any, tiny_family: Family, tiny_pipeline_dir: Path, recipe_of: RecipeOf
) -> None:
    (student,) = derive_variants(recipe_of(tiny_pipeline_dir, {"width": 0.5}), tiny_family).values()
    assert student.denoiser.device.type == "meta"
    assert student.denoiser.config == derive()["random_conditioning"].denoiser.config


def test_guidance_distillation_adds_an_input_to_the_shapes(derive: Any) -> None:
    students = derive(
        distill={"guidance_distillation": 3.0},
        variants={"first": {}, "second": {"teacher": "first", "distill": {"guidance_distillation": None}}},
    )
    inputs = [student.denoiser.config.time_cond_proj_dim for student in students.values()]
    assert inputs == [GUIDANCE_EMBEDDING] * 2


@pytest.mark.parametrize(
    ("student", "distill", "message"),
    [
        ({"width": 0.3}, {}, r"width 0\.3"),
        ({"depth": 0.5}, {}, "depth is for transformers"),
        ({"target": {"macs": 1e-6}}, {}, "no student that can be derived"),
        ({"width": 1.0}, {}, "parameters and its teacher"),
        ({"width": 0.5}, {"few_steps": {"num_inference_steps": 7}}, "num_inference_steps is 7"),
        ({"width": 0.5}, {"path": {"num_inference_steps": 2000}}, "num_inference_steps is 2000"),
        ({"width": 0.5}, {"loss": {"feature_layer_weights": {"midblock": 2.0}}}, "names 'midblock'"),
        (
            {"width": 0.5},
            {"few_steps": {"method": "consistency", "num_inference_steps": 4}},
            "set distill.guidance_distillation",
        ),
    ],
)
def test_a_variant_that_a_run_cannot_make_is_refused_by_name(
    derive: Any, student: dict[str, Any], distill: dict[str, Any], message: str
) -> None:
    with pytest.raises(CondistillError, match=rf"the student 'random_conditioning' cannot be made: .*{message}"):
        derive(student, distill=distill)


def test_refusals_of_variants_that_have_shapes_can_be_collected(derive: Any) -> None:
    refused: list[tuple[str, str]] = []
    distill = {"path": {"num_inference_steps": 2000}, "loss": {"feature_layer_weights": {"midblock": 2.0}}}
    students = derive(
        variants={"fits": {}, "does-not": {"distill": distill}},
        on_refusal=lambda name, error: refused.append((name, str(error))),
    )
    assert list(students) == ["fits", "does-not"]
    assert [name for name, _ in refused] == ["does-not"]
    with pytest.raises(CondistillError, match="'random_conditioning' cannot be made"):
        derive({"width": 0.3}, on_refusal=lambda *_: None)  # it has no shapes


@pytest.mark.slow
def test_a_transformer_that_takes_the_guidance_scale_needs_a_range_of_scales(recipe_of: RecipeOf) -> None:
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(DATA / "flux_dev")))
    recipe = recipe_of(DATA / "flux_dev", {"depth": 0.5})
    with pytest.raises(CondistillError, match=r"cannot be made: .*set distill.guidance_distillation to a range"):
        derive_variants(recipe, skeleton.family)
