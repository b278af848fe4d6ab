from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import BASE, mistakes

from condistill.config.conditioning import Constant, Exponential, Never, Sigmoid
from condistill.config.distill import ConsistencySettings, ProgressiveSettings
from condistill.config.recipe import Recipe
from condistill.errors import RecipeError


def test_defaults_are_those_of_the_paper() -> None:
    recipe = Recipe.parse(BASE)
    assert recipe.distill.conditioning.probability == Exponential(**{"lambda": 5.0})
    assert (recipe.distill.steps, recipe.distill.batch_size, recipe.distill.optimizer.learning_rate) == (
        400_000,
        256,
        5e-5,
    )
    assert (recipe.cache.size, recipe.cache.num_inference_steps) == (212_776, 25)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed='3'", "seed: input should be a valid integer (given: '3')"),
        ("cache.guidance_scale=-1", "cache.guidance_scale: input should be greater than or equal to 0"),
        ("cache.size=0", "cache.size is 0, and random_conditioning learns from cached latents"),
        ("prompts.files=[]", "prompts.files: list should have at least 1 item"),
        ("student={}", "give a preset, a width, a depth, a target or"),
        ("student={preset: c-base, width: 0.5}", "preset 'c-base' sets the width already"),
        ("student={width: 0.5, importance: taylr}", "student.importance: input should be 'weight_norm', 'activation'"),
        (
            "student={preset: b-base, importance: taylor}",
            "importance 'taylor' chooses channels to inherit from the teacher",
        ),
        ("student={width: 0.5, importance: taylor, weights: random}", "give a width and weights: teacher, or leave"),
        (
            "student={preset: b-base, keep: {mid_block: []}}",
            "preset and keep each choose the layers to keep; leave out all but one",
        ),
        ("student.keep={mid_block: [-1]}", "student.keep.mid_block.0: input should be greater than or equal to 0"),
        ("student.width=160", "a fraction of the teacher's channels is above 0 and at most 1"),
        ("variants={}", "variants: dictionary should have at least 1 item"),
        ("variants.teacher={}", "'teacher' cannot name a student"),
        (
            "variants={a: {teacher: b}, b: {}}",
            "variants.a.teacher is 'b', and it must be a variant above 'a': there is none",
        ),
        ("variants={small: {}, b: {teacher: smal}}", "is 'smal', and it must be a variant above 'b': small"),
        (
            "variants={a: {distill: {guidance_distillation: 2.0}}, "
            "b: {teacher: a, distill: {guidance_distillation: 2.0}}}",
            "variants.b: its teacher 'a' is guidance-distilled already",
        ),
        (
            "variants={a: {distill: {few_steps: {num_inference_steps: 4}}}, b: {teacher: a}}",
            "variants.b: its teacher knows 4 steps only",
        ),
        (
            "variants={a: {distill: {guidance_distillation: [2, 8]}}, b: {teacher: a}}",
            "variants.b: its teacher 'a' takes guidance scales of [2.0, 8.0] as an input, so the student must as well",
        ),
        (
            "variants={a: {distill: {guidance_distillation: [2, 8]}}, "
            "b: {teacher: a, distill: {guidance_distillation: [2, 9]}}}",
            "set distill.guidance_distillation to [2.0, 8.0] or a part of it",
        ),
        (
            "variants={a: {distill: {guidance_distillation: [2, 8]}}, "
            "b: {teacher: a, distill: {guidance_distillation: 3}}}",
            "set distill.guidance_distillation to [2.0, 8.0] or a part of it",
        ),
        (
            "variants={a: {distill: {guidance_distillation: 2.0}}, "
            "b: {teacher: a, distill: {guidance_distillation: [2, 3]}}}",
            "variants.b: its teacher 'a' is guidance-distilled already",
        ),
        (
            "variants={a: {distill: {guidance_distillation: 2, few_steps: {method: consistency, "
            "num_inference_steps: 4}}},"
            " b: {teacher: a}}",
            "variants.b: its teacher was trained with few_steps.method 'consistency'",
        ),
        (
            "variants={a: {distill: {few_steps: {num_inference_steps: 10}}}, b: {teacher: a, distill: "
            "{guidance_distillation: 2, few_steps: {method: consistency, num_inference_steps: 4}}}}",
            "num_inference_steps x teacher_steps = 10, or solver_steps = 10",
        ),
        ("teacher=miniature", "teacher: input should be a mapping (given: 'miniature')"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_with_its_key(override: str, message: str) -> None:
    (line,) = mistakes(BASE, override)
    assert message in line
    contradiction = ("distill: ", "distill.optimizer: ", "recipe: ")  # two settings: the line names their section
    assert line.startswith((f"override {override}: ", *contradiction))


def test_a_student_is_not_evaluated_with_a_guidance_scale_outside_its_range() -> None:
    changes = ("distill.guidance_distillation=[2, 8]", "evaluate.guidance_scale=9")
    (line,) = mistakes(BASE, *changes)
    assert "evaluate.guidance_scale is 9, and random_conditioning takes guidance scales of [2.0, 8.0]" in line
    assert Recipe.parse(BASE, [*changes, "evaluate.guidance_scale=8"]).evaluate.guidance_scale == 8
    assert (
        Recipe.parse(BASE, ["distill.guidance_distillation=3", "evaluate.guidance_scale=9"]).evaluate.guidance_scale
        == 9
    )


def test_another_method_of_few_steps_replaces_that_of_the_recipe_and_the_same_method_is_merged() -> None:
    base = "distill.few_steps={num_inference_steps: 4, teacher_steps: 3}"
    changed = """variants={
        same: {distill: {few_steps: {num_inference_steps: 2}}},
        other: {distill: {few_steps: {method: consistency, num_inference_steps: 4}}},
    }"""
    recipe = Recipe.parse(BASE, [base, changed])
    assert recipe.variant("same")[1].few_steps == ProgressiveSettings(num_inference_steps=2, teacher_steps=3)
    expected = ConsistencySettings(method="consistency", num_inference_steps=4)
    assert recipe.variant("other")[1].few_steps == expected
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_a_student_may_take_a_part_of_the_guidance_range_of_its_teacher() -> None:
    Recipe.parse(BASE, ["distill.guidance_distillation=[2, 8]", "variants={a: {}, b: {teacher: a}}"])
    part = "variants={a: {}, b: {teacher: a, distill: {guidance_distillation: [3, 4]}}}"
    recipe = Recipe.parse(BASE, ["distill.guidance_distillation=[2, 8]", part])
    assert recipe.variant("b")[1].guidance_range == (3, 4)


def test_consistency_can_be_learned_from_a_teacher_of_as_many_steps() -> None:
    chain = """variants={
        ten: {distill: {guidance_distillation: 3.0, few_steps: {num_inference_steps: 10}}},
        four: {teacher: ten, distill: {few_steps: {method: consistency, num_inference_steps: 4, solver_steps: 10}}},
    }"""
    Recipe.parse(BASE, [chain])


def test_every_file_of_the_pool_needs_a_weight_and_its_own_name() -> None:
    files = "prompts={files: [x/a.txt], cached_files: [x/a.txt, b.csv], unseen_files: [c.txt]}"
    weights = "distill.conditioning.prompt_choice.source_weights"
    recipe = Recipe.parse(BASE, [files, f"{weights}={{a.txt: 1.0, b.csv: 2.0, c.txt: 3.0}}"])
    assert recipe.distill.conditioning.prompt_choice is not None
    (line,) = mistakes(BASE, files, f"{weights}={{a.txt: 1.0}}")
    assert (
        "prompt_choice.source_weights leaves out 'b.csv', 'c.txt'; give every file of the prompt pool a weight" in line
    )
    (line,) = mistakes(BASE, "prompts.files=[x/a.txt, y/a.txt]", f"{weights}={{a.txt: 1.0}}")
    assert "needs different file names, and two files are called 'a.txt'; rename one" in line
    (line,) = mistakes(
        BASE, files, "variants={b: {distill: {conditioning: {prompt_choice: {source_weights: {a.txt: 1.0}}}}}}"
    )
    assert "'b': distill.conditioning.prompt_choice.source_weights leaves out 'b.csv', 'c.txt'" in line


def test_a_file_that_is_not_a_recipe_is_refused(tmp_path: Path) -> None:
    assert "recipe is not YAML" in mistakes("a: [1\nb: 2")[0]
    assert "must be a mapping with the keys seed, quick, teacher" in mistakes("- a\n")[0]
    with pytest.raises(RecipeError, match=r"there is no recipe at .*condistill init"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"teacher: \xdf")
    with pytest.raises(RecipeError, match="line 1: byte 9 is not UTF-8; save"):
        Recipe.load(tmp_path / "latin.yaml")


def test_overrides_set_nested_values_read_as_yaml() -> None:
    recipe = Recipe.parse(
        BASE + "distill: {steps: 9, batch_size: 4}\n",
        [
            "distill.steps=1000",
            "student.width=[8, 16]",
            "teacher.revision=main",
            "distill.conditioning.probability.lambda=2",
        ],
    )
    assert (recipe.distill.steps, recipe.distill.batch_size) == (1000, 4)
    assert recipe.student.width == (8, 16)
    assert recipe.teacher.revision == "main"
    assert recipe.distill.conditioning.probability == Exponential(**{"lambda": 2.0})


def test_a_variant_is_the_recipe_with_its_changes() -> None:
    recipe = Recipe.parse(
        BASE
        + """
distill: {steps: 9, conditioning: {probability: {lambda: 3}}}
variants:
  same: {}
  small: {student: {preset: c-micro, weights: random}}
  plain: {distill: {conditioning: {probability: {schedule: none}}, loss: {feature_weight: 0}}}
  steep: {distill: {conditioning: {probability: {lambda: 7}}}}
  always: {distill: {conditioning: {probability: {schedule: constant, probability: 1}}}}
  soft: {distill: {conditioning: {probability: {schedule: sigmoid, midpoint: 0.5}}}}
"""
    )
    assert recipe.variant("same") == (recipe.student, recipe.distill)
    student, distill = recipe.variant("small")
    assert (student.preset, student.weights, distill) == ("c-micro", "random", recipe.distill)
    found = {name: recipe.variant(name)[1].conditioning.probability for name in recipe.variants}
    assert found["plain"] == Never(schedule="none")
    assert found["steep"] == Exponential(**{"lambda": 7.0})
    assert found["always"] == Constant(schedule="constant", probability=1.0)
    assert found["soft"] == Sigmoid(schedule="sigmoid", midpoint=0.5)
    assert recipe.variant("plain")[1].steps == 9
    assert recipe.distill.conditioning.probability == Exponential(**{"lambda": 3.0})


def test_files_and_teachers_are_relative_to_the_folder_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    (folder / "mine").mkdir(parents=True)
    text = "teacher: {pipeline: PIPE}\nprompts: {files: [a.txt, ../b.csv, miniature], unseen_files: [u.txt]}\n"
    (folder / "r.yaml").write_text(text.replace("PIPE", "mine") + "student: {preset: b-base}\n")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("recipes/r.yaml", ["prompts.cached_files=[c.txt]"])
    assert recipe.teacher.pipeline == str(folder / "mine")
    assert recipe.prompts.files == (str(folder / "a.txt"), str(tmp_path / "b.csv"), "miniature")
    assert recipe.prompts.unseen_files == (str(folder / "u.txt"),)
    assert recipe.prompts.cached_files == (str(folder / "c.txt"),)
    (tmp_path / "moved.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "moved.yaml") == recipe
    hub = Recipe.load(folder / "r.yaml", ["teacher.pipeline=someone/model"])
    assert hub.teacher.pipeline == "someone/model"


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.parse(BASE).seed = 3  # type: ignore[misc]


SCHEDULES = st.one_of(
    st.builds(lambda x: {"lambda": x}, st.floats(0, 50)),
    st.builds(lambda x: {"schedule": "constant", "probability": x}, st.floats(0, 1)),
    st.builds(lambda x: {"schedule": "sigmoid", "slope": x}, st.floats(-50, 50)),
    st.just({"schedule": "none"}),
)


@given(
    seed=st.integers(0, 2**63 - 1),
    words=st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8), max_size=3),
    width=st.one_of(st.floats(0.01, 1), st.lists(st.integers(1, 999), min_size=1, max_size=4)),
    schedules=st.dictionaries(st.from_regex(r"[a-s][a-z0-9_-]{0,5}", fullmatch=True), SCHEDULES, max_size=3),
    learning_rate=st.floats(1e-12, 1),
)
@settings(max_examples=10, deadline=None)
def test_a_recipe_that_is_written_and_read_is_the_same_recipe(
    seed: int, words: list[str], width: Any, schedules: dict[str, Any], learning_rate: float
) -> None:
    recipe = Recipe.from_dict(
        {
            "seed": seed,
            "teacher": {"pipeline": "miniature"},
            "prompts": {"files": ["miniature"], "unseen_words": words},
            "student": {"width": width},
            "distill": {"optimizer": {"learning_rate": learning_rate}},
            "variants": {
                name: {"distill": {"conditioning": {"probability": value}}} for name, value in schedules.items()
            }
            or {"only": {}},
        }
    )
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_channel_scores_over_latents_need_a_cache_which_is_then_not_idle() -> None:
    student, noise = "student={width: 0.5, importance: activation}", "distill={path: {start: noise}}"
    (line,) = mistakes(BASE, student, noise, "cache.size=0")
    assert "cache.size is 0, and student.importance of random_conditioning is measured over cached latents" in line
    assert not Recipe.parse(BASE, [student, noise]).cache_is_idle
    assert Recipe.parse(BASE, ["student={width: 0.5}", noise]).cache_is_idle


def test_a_cache_is_not_idle_if_a_depth_or_a_target_is_chosen_with_it() -> None:
    noise = "distill={path: {start: noise}}"
    for student in ("{depth: 0.5}", "{target: {macs: 0.5}}"):
        assert not Recipe.parse(BASE, [f"student={student}", noise]).cache_is_idle


def test_a_recipe_as_yaml_has_no_control_characters_and_can_be_read_again() -> None:
    recipe = Recipe.parse(BASE)
    reversed_text = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"column": "é\u202etxt"})})
    text = reversed_text.to_yaml()
    assert text.isascii()
    assert Recipe.parse(text) == reversed_text
    assert "é" in recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"column": "é"})}).to_yaml()
