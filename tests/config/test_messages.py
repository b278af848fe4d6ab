from __future__ import annotations

import pytest
from recipes import BASE, mistakes


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
def test_an_unknown_key_of_a_schedule_names_the_nearest_setting_of_that_schedule(schedule: str, close: str) -> None:
    (line,) = mistakes(BASE, f"distill.conditioning.probability={{schedule: {schedule}, {close}s: 1}}")
    assert line.endswith(f"distill.conditioning.probability.{close}s is not a setting; did you mean '{close}'?") or (
        schedule == "none" and line.endswith("valid names: schedule")
    )


def test_all_mistakes_are_listed_at_once_with_their_lines() -> None:
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
    lines = mistakes(text)
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
        assert any(line.startswith(expected) for line in lines), (expected, lines)
    assert len(lines) == 11


def test_a_mistake_of_a_section_is_not_repeated_for_every_variant() -> None:
    lines = mistakes(
        BASE + "distill: {steps: 0}\nvariants:\n  a: {distill: {optimizer: {max_grad_norm: 2}}}\n  b: {}\n"
    )
    assert len(lines) == 1
    assert lines[0].startswith("line 4: distill.steps")


def test_a_variant_that_contradicts_its_recipe_is_refused_with_its_line() -> None:
    (line,) = mistakes(BASE + "variants:\n  a: {distill: {optimizer: {warmup_steps: 3}}}\n")
    assert line.startswith("line 5: variants.a.distill.optimizer: lr_scheduler 'constant' has no warm-up")
    (line,) = mistakes(BASE.replace("b-base", "c-base") + "variants:\n  a: {student: {width: 0.5}}\n")
    assert line.startswith("line 5: variants.a.student: preset 'c-base' sets the width already")


def test_a_variant_cannot_keep_settings_of_another_schedule() -> None:
    (line,) = mistakes(BASE + "variants: {a: {distill: {conditioning: {probability: {schedule: none, lambda: 2}}}}}\n")
    assert "variants.a.distill.conditioning.probability.lambda is not a setting" in line


def test_an_unknown_key_of_a_target_names_the_nearest_setting() -> None:
    (line,) = mistakes(BASE, "student={target: {mac: 0.5}}")
    assert "student.target.mac is not a setting; did you mean 'macs'?" in line


@pytest.mark.parametrize("override", ["distill.loss.x0_clip=[1.0]", "distill.loss.x0_clip=[]", "student.width=[null]"])
def test_a_list_that_is_too_short_is_refused_with_its_key(override: str) -> None:
    key = override.partition("=")[0]
    assert all(f"override {override}: {key}" in line for line in mistakes(BASE, override))


def test_a_word_that_yaml_reads_as_false_is_to_be_written_in_quotes() -> None:
    (line,) = mistakes(BASE, "distill.mixed_precision=no")
    assert line.endswith(
        "(given: False); YAML reads the words no, off, yes and on as false and true, so write them in quotes"
    )


def test_an_override_below_an_unknown_section_is_shown() -> None:
    (line,) = mistakes(BASE, "evaluatxe.grid=3")
    assert line == "override evaluatxe.grid=3: evaluatxe is not a setting; did you mean 'evaluate'?"


def test_a_key_that_is_given_twice_is_refused_with_both_lines() -> None:
    (line,) = mistakes(BASE + "distill:\n  steps: 1\n  batch_size: 2\n  steps: 3\n")
    assert line == "recipe gives distill.steps twice, on line 5 and line 7; keep one of the two"


def test_an_override_hides_the_line_it_replaces() -> None:
    (line,) = mistakes(BASE + "distill:\n  steps: 9\n", "distill.steps=0")
    assert line.startswith("override distill.steps=0: distill.steps: input should be greater than 0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.steps", "is not an override; write key=value"),
        ("=3", "is not an override; write key=value"),
        ("seed.deep=3", "sets a key of 'seed', which holds no settings"),
        ("seed=[1", "is not YAML"),
    ],
)
def test_an_override_that_cannot_apply_is_refused(override: str, message: str) -> None:
    assert message in mistakes(BASE + "seed: 1\n", override)[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "teacher.loras=[style.safetensors]",
            "teacher.loras.0: input should be a mapping (given: 'style.safetensors')",
        ),
        ("teacher.loras=[{path: a, scale: 11}]", "teacher.loras.0.scale: input should be less than or equal to 10"),
        ("teacher.loras=[{path: a, scales: 1}]", "teacher.loras.0.scales is not a setting; did you mean 'scale'?"),
        ("teacher.loras=[{path: a, weight: 1}]", "teacher.loras.0.weight is not a setting"),
        ("teacher.loras=[{scale: 1.0}]", "teacher.loras.0.path is missing; it has no default"),
        ("teacher.lora=[]", "teacher.lora is not a setting; did you mean 'loras'?"),
    ],
)
def test_a_mistake_in_a_list_of_settings_names_its_place(override: str, message: str) -> None:
    (line,) = mistakes(BASE, override)
    assert message in line
    assert "student" not in line
