from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condistill.config.conditioning import Constant, Exponential, Never, Sigmoid
from condistill.config.distill import ConsistencySettings, ProgressiveSettings
from condistill.config.recipe import Recipe
from condistill.errors import RecipeError

BASE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-base}\n"


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, overrides)
    first, *rest = str(caught.value).splitlines()
    assert not rest or f"{len(rest)} mistake(s)" in first
    return [line.strip() for line in rest] or [first]


def test_defaults_are_the_papers() -> None:
    recipe = Recipe.parse(BASE)
    assert recipe.distill.conditioning.probability == Exponential(**{"lambda": 5.0})
    assert (recipe.distill.steps, recipe.distill.batch_size, recipe.distill.optimizer.learning_rate) == (
        400_000,
        256,
        5e-5,
    )
    assert (recipe.cache.size, recipe.cache.num_inference_steps) == (212_776, 25)


@pytest.mark.parametrize(
    ("key", "place", "close"),
    [
        ("sead", "", "seed"),
        ("pipelin", "teacher", "pipeline"),
        ("colum", "prompts", "column"),
        ("shardsize", "cache", "shard_size"),
        ("presets", "student", "preset"),
        ("learning_rte", "distill.optimizer", "learning_rate"),
        ("lamda", "distill.conditioning.probability", "lambda"),
        ("grids", "evaluate", "grid"),
        ("distil", "variants.a", "distill"),
        ("stps", "variants.a.distill", "steps"),
        ("widht", "variants.none.student", "width"),
        ("lamda", "variants.none.distill.conditioning.probability", "lambda"),
    ],
)
def test_an_unknown_key_names_the_nearest_setting(key: str, place: str, close: str) -> None:
    full = f"{place}.{key}" if place else key
    assert mistakes(BASE, f"{full}=1") == [f"override {full}=1: {full} is not a setting; did you mean '{close}'?"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("distill.learning_rate", "distill.optimizer.learning_rate"),
        ("distill.feature_weight", "distill.loss.feature_weight"),
        ("distill.warmup_steps", "distill.optimizer.warmup_steps"),
        ("distill.prompt_choice", "distill.conditioning.prompt_choice"),
        ("distill.tracker", "distill.logging.tracker"),
        ("distill.random_conditioning", "conditioning"),
        ("learning_rate", "distill.optimizer.learning_rate"),
        ("variants.none.distill.ema_decay", "variants.none.distill.optimizer.ema_decay"),
    ],
)
def test_a_setting_in_the_wrong_place_names_its_full_key(key: str, meant: str) -> None:
    assert mistakes(BASE, f"{key}=1") == [f"override {key}=1: {key} is not a setting; did you mean '{meant}'?"]


@pytest.mark.parametrize(
    ("schedule", "close"), [("sigmoid", "midpoint"), ("constant", "probability"), ("none", "schedule")]
)
def test_an_unknown_key_of_a_schedule_is_compared_with_its_own_settings(schedule: str, close: str) -> None:
    (line,) = mistakes(BASE, f"distill.conditioning.probability={{schedule: {schedule}, {close}s: 1}}")
    assert line.endswith(f"distill.conditioning.probability.{close}s is not a setting; did you mean '{close}'?") or (
        schedule == "none" and line.endswith("valid names: schedule")
    )


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    text = """
seed: -1
teacher: {}
prompts:
  files: miniature
student:
  preset: b-bas
distill:
  steps: 0
  conditioning: {probability: {schedule: sigmoid, midpoint: 2}}
variants:
  a:
    distill:
      stps: 3
  B: {}
  c: 3
  d: {student: 5}
  constant:
    student: {width: 3}
""".lstrip()
    told = mistakes(text)
    for expected in (
        "line 1: seed: input should be greater than or equal to 0 (given: -1)",
        "line 2: teacher.pipeline is missing; it has no default",
        "line 4: prompts.files: input should be a list (given: 'miniature')",
        "line 6: student.preset: input should be 'b-base', 'b-small'",
        "line 8: distill.steps: input should be greater than 0 (given: 0)",
        "line 9: distill.conditioning.probability.midpoint: input should be less than or equal to 1 (given: 2)",
        "line 13: variants.a.distill.stps is not a setting; did you mean 'steps'?",
        "line 14: variants.B: 'B' cannot name a student",
        "line 15: variants.c: input should be a mapping (given: 3)",
        "line 16: variants.d.student: input should be a mapping (given: 5)",
        "line 18: variants.constant.student.width: a fraction of the teacher's channels is above 0",
    ):
        assert any(line.startswith(expected) for line in told), (expected, told)
    assert len(told) == 11


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed='3'", "seed: input should be a valid integer (given: '3')"),
        ("distill.steps=1.5", "distill.steps: input should be a valid integer"),
        ("cache.guidance_scale=-1", "cache.guidance_scale: input should be greater than or equal to 0"),
        ("distill.optimizer.ema_decay=1.5", "distill.optimizer.ema_decay: input should be less than or equal to 1"),
        ("distill.gradient_checkpointing=1", "distill.gradient_checkpointing: input should be a valid boolean"),
        ("distill.mixed_precision=fp8", "distill.mixed_precision: input should be 'no', 'fp16' or 'bf16'"),
        ("distill.optimizer.warmup_steps=5", "lr_scheduler 'constant' has no warm-up"),
        ("distill.micro_batch_size=100", "distill.batch_size 256 is not a multiple of distill.micro_batch_size 100"),
        ("distill={loss: {output_weight: 0, feature_weight: 0}}", "every loss weight is 0"),
        ("distill.path={start: nose}", "distill.path.start: input should be 'cache' or 'noise'"),
        ("distill.path={share: 0}", "distill.path.share: input should be greater than 0"),
        ("distill.path={stpes: 3}", "distill.path.stpes is not a setting; did you mean 'steps'?"),
        ("cache.size=0", "cache.size is 0, and random_conditioning learns from cached latents"),
        ("distill={path: {start: noise}, loss: {task_weight: 1.0}}", "task_weight needs cached latents"),
        ("distill={loss: {feature_weight: 0, feature_normalization: teacher}}", "need a feature_weight above 0"),
        (
            "distill={loss: {feature_weight: 0, feature_layer_weights: {mid_block: 2.0}}}",
            "need a feature_weight above 0",
        ),
        (
            "distill={loss: {features: attention_maps}, gradient_checkpointing: true}",
            "cannot be recorded with distill.gradient_",
        ),
        ("distill.conditioning.probability.schedule=sgmoid", "'sgmoid' is unknown; use 'exponential', 'sigmoid'"),
        ("prompts.files=[]", "prompts.files: list should have at least 1 item"),
        ("student={}", "give a preset, a width, a depth, a target or"),
        ("student={preset: c-base, width: 0.5}", "preset 'c-base' sets the width already"),
        ("student={width: 0.5, importance: taylr}", "student.importance: input should be 'weight_norm', 'activation'"),
        (
            "student={preset: b-base, importance: taylor}",
            "importance 'taylor' chooses the channels of a width that inherits",
        ),
        ("student={width: 0.5, importance: taylor, weights: random}", "give a width and weights: teacher, or leave"),
        (
            "student={preset: b-base, keep: {mid_block: []}}",
            "preset and keep say which layers are kept; leave out all but one",
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
            "variants.b: guidance is folded into its teacher 'a' already",
        ),
        (
            "variants={a: {distill: {few_steps: {num_inference_steps: 4}}}, b: {teacher: a}}",
            "variants.b: its teacher knows 4 steps only",
        ),
        (
            "variants={a: {distill: {guidance_distillation: [2, 8]}}, b: {teacher: a}}",
            "variants.b: its teacher 'a' is told guidance scales of [2.0, 8.0], so it must be as well",
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
            "variants.b: guidance is folded into its teacher 'a' already",
        ),
        (
            "variants={a: {distill: {guidance_distillation: 2, few_steps: {method: consistency, "
            "num_inference_steps: 4}}},"
            " b: {teacher: a}}",
            "variants.b: its teacher learnt consistency, and knows where a path ends but not how it goes on",
        ),
        (
            "variants={a: {distill: {few_steps: {num_inference_steps: 10}}}, b: {teacher: a, distill: "
            "{guidance_distillation: 2, few_steps: {method: consistency, num_inference_steps: 4}}}}",
            "num_inference_steps x teacher_steps = 10, or as many solver_steps",
        ),
        (
            "distill.guidance_distillation=1",
            "a guidance scale to distil is above 1, and a range of scales is [low, high] with 1 <",
        ),
        ("distill.guidance_distillation=true", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[8, 2]", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[2]", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[1, 2]", "a guidance scale to distil is above 1"),
        ("distill.guidance_distillation=[2, .inf]", "a guidance scale to distil is above 1"),
        ("distill.few_steps={method: consitency}", "'consitency' is unknown; use 'progressive', 'consistency'"),
        ("distill.few_steps={method: consistency}", "distill.few_steps.num_inference_steps is missing"),
        (
            "distill.few_steps={method: consistency, num_inference_steps: 4, teacher_steps: 2}",
            "distill.few_steps.teacher_steps is not a setting",
        ),
        ("distill.few_steps={num_inference_steps: 4, solver_steps: 50}", "distill.few_steps.solver_steps is not a"),
        (
            "distill.few_steps={method: consistency, num_inference_steps: 60}",
            "num_inference_steps 60 is more than the student is trained at: solver_steps 50",
        ),
        (
            "distill={few_steps: {method: consistency, num_inference_steps: 4}, path: {}}",
            "few_steps.method 'consistency' learns at isolated samples",
        ),
        ("distill.path={share: 0.001}", "distill.path.share 0.001 of distill.batch_size 256 is 0.256 samples"),
        ("distill.path={steps: 30}", "distill.path.steps 30 is more than distill.path.num_inference_steps 25"),
        ("distill={path: {guidance_scale: 2.0}, guidance_distillation: 2.0}", "leave out distill.path.guidance_scale"),
        (
            "distill={path: {start: noise}, conditioning: {timestep_bias: 1.0}}",
            "distill.conditioning.timestep_bias applies to isolated samples",
        ),
        ("distill={guidance_distillation: 3.0, loss: {guidance_weight: 1.0}}", "choose one"),
        ("distill={few_steps: {num_inference_steps: 4}, path: {}}", "path.num_inference_steps is 25"),
        (
            "distill={few_steps: {num_inference_steps: 4}, loss: {task_weight: 1.0}}",
            "distill.few_steps has its own targets",
        ),
        ("distill.few_steps={num_inference_steps: 4, teacher_stps: 2}", "did you mean 'teacher_steps'?"),
        ("distill.conditioning.prompt_choice={candidats: 2}", "did you mean 'candidates'?"),
        (
            "distill.conditioning.prompt_choice={candidates: 0}",
            "distill.conditioning.prompt_choice.candidates: input should be greater than 0",
        ),
        (
            "distill.conditioning.prompt_choice={interpolate: 1.5}",
            "interpolate: input should be less than or equal to 1",
        ),
        ("distill.conditioning.prompt_choice={distance: -1.0}", "distance: input should be greater than or equal to 0"),
        ("distill.conditioning.prompt_choice={distance: .inf}", "distance: input should be a finite number"),
        ("distill.conditioning.prompt_choice={clusters: 1}", "clusters: input should be greater than or equal to 2"),
        (
            "distill.conditioning.prompt_choice={source_weights: {miniature: -1}}",
            "input should be greater than or equal to 0",
        ),
        ("distill.conditioning.prompt_choice={source_weights: {miniature: 0}}", "source_weights has no weight above 0"),
        (
            "distill.conditioning.prompt_choice={candidates: 2, disagreement: 1, interpolate: 1}",
            "disagreement learns from prompts that are not blended; set interpolate below 1",
        ),
        ("distill.conditioning.prompt_choice={source_weights: {}}", "source_weights has no weight above 0"),
        (
            "distill.conditioning.prompt_choice={source_weights: {minature: 1.0}}",
            "source_weights names 'minature', which is no file of the prompt pool; did you mean 'miniature'?",
        ),
        (
            "distill.conditioning.prompt_choice={novelty: 1.0}",
            "choose among candidates, and candidates is 1; set candidates to 2 or more",
        ),
        ("distill.conditioning.prompt_choice={candidates: 4}", "candidates is 4, but nothing ranks them"),
        (
            "distill.conditioning.prompt_choice={candidates: 4, novelty: 1.0, clusters: 8}",
            "clusters is 8 but is used only if disagreement is above 0; leave it out",
        ),
        (
            "distill={conditioning: {prompt_choice: {}, probability: {schedule: none}}}",
            "no sample gets a random prompt; set it to null",
        ),
        (
            "distill={conditioning: {prompt_choice: {}, probability: {schedule: constant, probability: 0}}}",
            "no sample gets a random prompt; set it to null",
        ),
        (
            "distill={conditioning: {prompt_choice: {distance: 1.0}, probability: {schedule: constant}}}",
            "a schedule that depends on the noise level, such as 'exponential' or 'sigmoid'",
        ),
        (
            "distill={conditioning: {prompt_choice: {distance: 1.0}}, path: {start: noise}}",
            "of cached latents; use it with cached latents",
        ),
        (
            "distill={conditioning: {prompt_choice: {interpolate: 0.5}}, path: {}}",
            "prompt_choice.interpolate applies to re-paired samples",
        ),
        (
            "distill={conditioning: {prompt_choice: {candidates: 2, disagreement: 1.0}}, path: {}}",
            "prompt_choice.disagreement applies to re-paired samples that are not on a path, and there are none",
        ),
        (
            "distill={conditioning: {prompt_choice: {interpolate: 0.5}, probability: {schedule: none}}, "
            "path: {start: noise, share: 0.5}}",
            "prompt_choice.interpolate applies to re-paired samples",
        ),
        (
            "distill={conditioning: {prompt_choice: {candidates: 2, novelty: 1.0}}, path: {start: noise}}",
            "prompt_choice.novelty is the distance to cached prompts, and none is used",
        ),
        ("teacher=miniature", "teacher: input should be a mapping (given: 'miniature')"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_told(override: str, message: str) -> None:
    (line,) = mistakes(BASE, override)
    assert message in line
    contradiction = ("distill: ", "distill.optimizer: ", "recipe: ")  # of two settings: told of what holds both
    assert line.startswith((f"override {override}: ", *contradiction))


def test_a_student_is_not_evaluated_with_a_scale_it_was_never_told() -> None:
    changes = ("distill.guidance_distillation=[2, 8]", "evaluate.guidance_scale=9")
    (line,) = mistakes(BASE, *changes)
    assert "evaluate.guidance_scale is 9, and random_conditioning is told scales of [2.0, 8.0]" in line
    assert Recipe.parse(BASE, [*changes, "evaluate.guidance_scale=8"]).evaluate.guidance_scale == 8
    assert (
        Recipe.parse(BASE, ["distill.guidance_distillation=3", "evaluate.guidance_scale=9"]).evaluate.guidance_scale
        == 9
    )


def test_another_method_of_few_steps_replaces_the_recipes_and_the_same_one_is_laid_over_it() -> None:
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


def test_students_of_a_student_that_is_told_its_scale_may_be_told_a_part_of_its_range() -> None:
    Recipe.parse(BASE, ["distill.guidance_distillation=[2, 8]", "variants={a: {}, b: {teacher: a}}"])
    part = "variants={a: {}, b: {teacher: a, distill: {guidance_distillation: [3, 4]}}}"
    recipe = Recipe.parse(BASE, ["distill.guidance_distillation=[2, 8]", part])
    assert recipe.variant("b")[1].guidance_range == (3, 4)


def test_consistency_may_be_learnt_from_a_teacher_of_as_many_steps() -> None:
    chain = """variants={
        ten: {distill: {guidance_distillation: 3.0, few_steps: {num_inference_steps: 10}}},
        four: {teacher: ten, distill: {few_steps: {method: consistency, num_inference_steps: 4, solver_steps: 10}}},
    }"""
    Recipe.parse(BASE, [chain])


@pytest.mark.parametrize(
    "distill",
    [
        "{conditioning: {prompt_choice: {distance: 1.0}}, path: {start: cache}}",
        "{conditioning: {prompt_choice: {distance: 1.0, interpolate: 0.5}}, path: {start: noise, share: 0.5}}",
        "{conditioning: {prompt_choice: {}, probability: {schedule: none}}, path: {start: noise}}",
        "{conditioning: {prompt_choice: {candidates: 2, disagreement: 1.0, clusters: 8}, "
        "probability: {schedule: constant}}}",
        "{conditioning: {prompt_choice: {source_weights: {miniature: 2.0}}}}",
    ],
)
def test_prompt_choices_are_chosen_wherever_there_are_any(distill: str) -> None:
    recipe = Recipe.parse(BASE, [f"distill={distill}"])
    assert recipe.distill.conditioning.prompt_choice is not None
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_every_file_of_the_pool_needs_a_weight_and_a_name_of_its_own() -> None:
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


def test_a_key_given_twice_is_told_with_both_lines() -> None:
    (line,) = mistakes(BASE + "distill:\n  steps: 1\n  batch_size: 2\n  steps: 3\n")
    assert line == "recipe gives distill.steps twice, on line 5 and line 7; keep one of the two"


def test_what_is_no_recipe_is_told(tmp_path: Path) -> None:
    assert "recipe is not YAML" in mistakes("a: [1\nb: 2")[0]
    assert "must be a mapping with the keys seed, teacher" in mistakes("- a\n")[0]
    with pytest.raises(RecipeError, match=r"there is no recipe at .*condistill init"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"teacher: \xdf")
    with pytest.raises(RecipeError, match="cannot be read"):
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


def test_an_override_hides_the_line_it_replaces() -> None:
    (line,) = mistakes(BASE + "distill:\n  steps: 9\n", "distill.steps=0")
    assert line.startswith("override distill.steps=0: distill.steps: input should be greater than 0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.steps", "is not an override; write key=value"),
        ("=3", "is not an override; write key=value"),
        ("seed.deep=3", "goes into 'seed', which holds no settings"),
        ("seed=[1", "is not YAML"),
    ],
)
def test_an_override_that_cannot_apply_is_told(override: str, message: str) -> None:
    assert message in mistakes(BASE + "seed: 1\n", override)[0]


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


def test_a_mistake_of_a_section_is_not_told_again_for_every_variant() -> None:
    told = mistakes(BASE + "distill: {steps: 0}\nvariants:\n  a: {distill: {optimizer: {max_grad_norm: 2}}}\n  b: {}\n")
    assert len(told) == 1
    assert told[0].startswith("line 4: distill.steps")


def test_a_variant_that_contradicts_its_recipe_is_told() -> None:
    (line,) = mistakes(BASE + "variants:\n  a: {distill: {optimizer: {warmup_steps: 3}}}\n")
    assert line.startswith("line 5: variants.a.distill.optimizer: lr_scheduler 'constant' has no warm-up")
    (line,) = mistakes(BASE.replace("b-base", "c-base") + "variants:\n  a: {student: {width: 0.5}}\n")
    assert line.startswith("line 5: variants.a.student: preset 'c-base' sets the width already")


def test_a_variant_cannot_keep_settings_of_another_schedule() -> None:
    (line,) = mistakes(BASE + "variants: {a: {distill: {conditioning: {probability: {schedule: none, lambda: 2}}}}}\n")
    assert "variants.a.distill.conditioning.probability.lambda is not a setting" in line


def test_files_and_teachers_are_found_from_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_is_written_is_read_again_as_the_same_recipe(
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


def test_channels_cannot_be_measured_without_a_cache_which_is_not_idle_where_they_are() -> None:
    student, noise = "student={width: 0.5, importance: activation}", "distill={path: {start: noise}}"
    (line,) = mistakes(BASE, student, noise, "cache.size=0")
    assert "cache.size is 0, and student.importance of random_conditioning is measured over cached latents" in line
    assert not Recipe.parse(BASE, [student, noise]).cache_is_idle
    assert Recipe.parse(BASE, ["student={width: 0.5}", noise]).cache_is_idle


def test_a_depth_and_what_may_become_one_are_chosen_over_the_cache() -> None:
    noise = "distill={path: {start: noise}}"
    for student in ("{depth: 0.5}", "{target: {macs: 0.5}}"):
        assert not Recipe.parse(BASE, [f"student={student}", noise]).cache_is_idle


def test_a_mistyped_target_is_told_with_its_place_and_the_name_that_was_meant() -> None:
    (line,) = mistakes(BASE, "student={target: {mac: 0.5}}")
    assert "student.target.mac is not a setting; did you mean 'macs'?" in line
