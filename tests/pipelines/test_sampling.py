from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from condistill.config.recipe import Recipe
from condistill.config.sections import TeacherSettings
from condistill.pipelines.sampling import SAMPLING_NAME, Sampling, planned_sampling
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher

BASE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-base}\nvariants: {a: {}}\n"


@pytest.mark.parametrize(
    ("cached", "evaluated", "expected"), [(5.0, None, 5.0), (9.0, None, 8.0), (1.0, None, 2.0), (9.0, 3.0, 3.0)]
)
def test_a_distilled_student_is_sampled_with_the_nearest_scale_that_it_learnt(
    cached: float, evaluated: float | None, expected: float
) -> None:
    changes = [f"cache.guidance_scale={cached}", f"evaluate.guidance_scale={evaluated or 'null'}"]
    recipe = Recipe.parse(BASE, [*changes, "distill.guidance_distillation=[2, 8]"])
    assert planned_sampling(recipe, "a").guidance_scale == expected
    assert planned_sampling(recipe, None).guidance_scale == (evaluated or cached)


def test_the_few_step_method_sets_the_scheduler(tiny_family: Family) -> None:
    assert Sampling(25, 7.5).scheduler(tiny_family) is None
    few = "distill.few_steps={num_inference_steps: 4}"
    assert planned_sampling(Recipe.parse(BASE, [few]), "a").scheduler(tiny_family) is tiny_family.noise.solver
    few = "distill.few_steps={method: consistency, num_inference_steps: 4, solver_steps: 20}"
    sampling = planned_sampling(Recipe.parse(BASE, [few, "distill.guidance_distillation=3.0"]), "a")
    scheduler = sampling.scheduler(tiny_family)
    assert type(scheduler).__name__ == "LCMScheduler"
    assert scheduler.config.original_inference_steps == 20
    assert sampling.num_inference_steps == 4


def test_a_pipeline_directory_holds_its_sampling_settings(tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    pipeline = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline"))
    (pipeline / SAMPLING_NAME).write_text(Sampling(4, 3.0).to_json(), encoding="utf-8")
    sampling = load_teacher(TeacherSettings(pipeline=str(pipeline))).default_sampling()
    assert (sampling.num_inference_steps, sampling.guidance_scale, sampling.resolution) == (4, 3.0, None)
    sized = planned_sampling(Recipe.parse(BASE, ["teacher.resolution=32"]), "a")
    (pipeline / SAMPLING_NAME).write_text(sized.to_json(), encoding="utf-8")
    assert load_teacher(TeacherSettings(pipeline=str(pipeline))).default_sampling().resolution == 32


def test_a_sampling_file_that_was_edited_is_known_from_one_that_was_not() -> None:
    sampling, before = Sampling(25, 7.5, resolution=64), Sampling(4, 1.0)
    assert sampling.may_replace(before.to_json())
    assert sampling.may_replace('{"guidance_scale": 7.5, "num_inference_steps": 25, "resolution": 64}')
    assert not sampling.may_replace(before.to_json().replace("4", "8", 1))
    assert not any(map(sampling.may_replace, ("", "[]", "my notes", '{"num_inference_steps": 4}')))
