"""Where students load: what a plan says before the training is what export and the model card say after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from diffusers import ModelMixin
from full_size import DATA

from condistill.config.recipe import Recipe
from condistill.config.sections import TeacherSettings
from condistill.export import EXPORTERS, LoadsIn, find_source, loads_in
from condistill.pipelines.sampling import Sampling
from condistill.plan.loading import lines_by_student, student_loading, student_shape
from condistill.teachers.skeleton import Skeleton, teacher_skeleton

RECIPE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-small}\n"
FEW = "variants: {a: {}, few: {distill: {few_steps: {num_inference_steps: 4}}}}\n"


def test_a_plan_sees_of_a_pipeline_what_an_export_sees(tiny_skeleton: Skeleton, tiny_pipeline_dir: Path) -> None:
    planned = student_shape(tiny_skeleton, tiny_skeleton.denoiser, Sampling(4, 1.0))
    found = find_source(str(tiny_pipeline_dir)).shape
    assert planned.pipeline_class == found.pipeline_class
    assert planned.denoiser_class == found.denoiser_class
    assert planned.classes == {name: entry for name, entry in found.classes.items() if name in found.components}
    assert planned.components.keys() == found.components.keys()
    for name, config in found.components.items():
        of_plan = json.loads(json.dumps(dict(planned.components[name]), default=str))
        shared = {key for key in config if key in of_plan and not key.startswith("_") and "dtype" not in key}
        assert len(shared) > 5
        assert {key: config[key] for key in shared} == {key: of_plan[key] for key in shared}
    for exporter in EXPORTERS.values():
        assert exporter.check(planned) == exporter.check(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd14", "sd21", "sdxl", "sd35_medium", "flux_dev", "pixart_sigma", "sana_1600m"])
def test_a_plan_of_a_released_teacher_agrees_with_its_export(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / name, tmp_path / name))
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(folder)))
    for part, model in skeleton.family.pipeline.components.items():
        if isinstance(model, ModelMixin):  # every config that is saved names all settings
            model.save_config(folder / part)
    planned = student_shape(skeleton, skeleton.denoiser, Sampling(25, 7.5))
    found = find_source(str(folder)).shape
    for exporter in EXPORTERS.values():
        assert exporter.check(planned) == exporter.check(found), exporter.name


def test_a_few_step_student_has_the_scheduler_that_it_will_be_saved_with(tiny_skeleton: Skeleton) -> None:
    recipe = Recipe.parse(RECIPE + FEW)
    few = recipe.variant("few")[1].few_steps
    shape = student_shape(tiny_skeleton, tiny_skeleton.denoiser, Sampling(4, 1.0, few))
    scheduler = Sampling(4, 1.0, few).scheduler(tiny_skeleton.family)
    assert shape.components["scheduler"]["_class_name"] == type(scheduler).__name__
    assert shape.sampling["num_inference_steps"] == 4
    assert student_loading(recipe, tiny_skeleton, tiny_skeleton.denoiser, "a") == loads_in(
        student_shape(tiny_skeleton, tiny_skeleton.denoiser, Sampling(25, 7.5))
    )


def test_students_that_load_in_the_same_programs_share_a_line() -> None:
    one, other = (LoadsIn("ComfyUI", loads, reason, "a source") for loads, reason in ((True, "how"), (False, "width")))
    lines = lines_by_student({"a": [one], "b": [other], "c": [one], "d": [other]})
    assert lines == [
        "- a, c: diffusers, ComfyUI",
        "- b, d: diffusers",
        "- not ComfyUI: b, d: width",
        "- by their sources: ComfyUI: a source",
    ]
    assert lines_by_student({"a": []}) == ["- a: diffusers"]
