from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest
import yaml
from recipes import BASE, mistakes

from condistill.config import yaml_text
from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.config.sections import Settings
from condistill.errors import RecipeError
from condistill.workflow.sweep_cases import Sweep, plan_runs


def bomb(levels: int = 9) -> str:
    """Return a text of 600 bytes whose aliases stand for 9**levels values."""
    lines = [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9) if n else ','.join('x' * 9)}]" for n in range(levels)]
    return "\n".join(lines) + "\n"


def merge_bomb(levels: int = 9) -> str:
    """Return the same with merge keys."""
    lines = [f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(["a0: &a0 {x: 1}", *lines]) + "\n"


HOSTILE = {
    "aliases of aliases": (bomb(), "more than 20,000 values; "),
    "merges of merges": (merge_bomb(), "more than 20,000 values; "),
    "an alias inside of itself": (BASE + "cache: &a {size: *a}\n", "line 4: cache.size: the alias is inside of what"),
    "a list inside of itself": (BASE + "seed: &a [*a]\n", "line 4: seed.0: the alias is inside of what"),
    "a merge inside of itself": (BASE + "cache: &a {<<: *a}\n", "line 4: cache: the alias is inside of what"),
    "brackets": (BASE + "seed: " + "[" * 5000, "line 4: more than 20 levels are nested"),
    "braces": (BASE + "seed: " + "{a: " * 5000, "line 4: more than 20 levels are nested"),
    "dashes": (BASE + "seed:\n" + "- " * 5000, "line 5: more than 20 levels are nested"),
    "a huge text": (BASE + "#" * 10**7, "a recipe has at most 500,000; move"),
    "a huge value": (BASE + "seed: " + "x" * 10**5, "line 4: seed: it has 100,000 characters; write at most 4,096"),
    "a huge list": (BASE + f"evaluate: {{seeds: [{'1,' * 10**5}]}}", "more than 20,000 values; move long lists"),
    "many unknown keys": (BASE + "".join(f"k{n}: 1\n" for n in range(300)), "and 270 more"),
    "many variants": (BASE + f"variants: {{{','.join(f'a{n}: {{}}' for n in range(300))}}}", "at most 100 items"),
    "a key twice": (BASE + "seed: 1\nseed: 2", "gives seed twice, on line 4 and line 5; keep one"),
    "a key twice in a list": (BASE + "seed: [{a: 1, a: 2}]", "gives seed.0.a twice, on line 4 and line 4"),
    "a number as key": (BASE + "1: 2", "line 4: the key '1' is not text; write it in quotes"),
    "null as key": (BASE + "variants: {~: {}}", "line 4: variants: the key '~' is not text"),
    "a word for true as key": (BASE + "yes: 2", "line 4: the key 'yes' is not text; write it in quotes"),
    "a list as key": (BASE + "[a]: 2", "line 4: a key is a mapping or a list; write a name"),
    "a mapping as key": (BASE + "? {a: 1}\n: 2", "line 4: a key is a mapping or a list; write a name"),
    "NUL": (BASE + "seed: \0", "line 4: the character '\\x00' is not allowed in YAML; remove it"),
    "ESC": (BASE + "\x1b[2J: 3", "line 4: the character '\\x1b' is not allowed in YAML; remove it"),
    "an escaped NUL": (BASE.replace("miniature}", r'"a\0b"}'), "line 1: teacher.pipeline: it contains '\\x00'"),
    "an escaped ESC as key": (BASE + r'"\e[2J": 3', "line 4: \x1b[2J: the name contains '\\x1b'"),
    "half a character": (BASE + r'seed: "\ud800"', "4"),
    "a date": (BASE + "seed: 2020-01-01", "line 4: seed: '2020-01-01' is a date in YAML; write it in quotes"),
    "base 60": (BASE + "seed: 1:30", "line 4: seed: '1:30' is not a plain number; write decimal digits"),
    "a fraction in base 60": (
        BASE + "cache: {guidance_scale: 1:30.5}",
        "line 4: cache.guidance_scale: '1:30.5' is not",
    ),
    "an octal number": (BASE + "seed: 010", "line 4: seed: '010' is not a plain number"),
    "a tag of Python": (
        BASE + "seed: !!python/object/apply:os.system [ls]",
        "line 4: seed: the tag '!!python/object/app",
    ),
    "an own tag": (BASE + "seed: !own 3", "line 4: seed: the tag '!own' is not allowed; write a plain value"),
    "binary data": (BASE + "seed: !!binary aGVsbG8=", "line 4: seed: the tag '!!binary' is not allowed"),
    "a set": (BASE + "seed: !!set {a, b}", "line 4: seed: the tag '!!set' is not allowed"),
    "a wrong tag": (BASE + "seed: !!bool x", "line 4: seed: 'x' is not of the type bool; remove the tag"),
    "40 digits": (BASE + "seed: " + "9" * 40, "line 4: seed: '9999999999999999999999999999999999999999' has 40 digits"),
    "5000 digits": (BASE + "seed: " + "9" * 5000, "has 5000 digits, too many for any setting"),
    "two documents": (BASE + "---\n" + BASE, "is not YAML: line 4, column 1: "),
    "an unknown alias": (BASE + "seed: *a", "is not YAML: line 4, column 7: found undefined alias"),
    "a tab": (BASE + "cache:\n\tsize: 3", "is not YAML: line 5, column 1: "),
}


@pytest.mark.parametrize("loader", ["CSafeLoader", pytest.param("SafeLoader", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_quickly_with_its_place(
    name: str, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_text, "_LOADER", getattr(yaml, loader))
    text, message = HOSTILE[name]
    started = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert time.perf_counter() - started < 5  # a second alone, more beside other tests
    assert message in str(caught.value)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    "text", ["seed=&a [*a]", f"seed={'[' * 500}", f"seed={'9' * 40}", "seed=!!python/name:os.system"]
)
def test_hostile_yaml_is_refused_in_overrides_and_sweeps(text: str, tmp_path: Path) -> None:
    assert "the override 'seed=" in mistakes(BASE, text)[0]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(BASE, encoding="utf-8")
    for sweep in (Sweep(recipe, grid=[text]), Sweep(recipe, cases=[f"a: {text}"]), Sweep(recipe, overrides=[text])):
        with pytest.raises(RecipeError, match="the value of"):
            plan_runs(sweep)


@pytest.mark.parametrize("key", ["a..b", ".a", "a.", ".", "a." * 50 + "b", ""])
def test_an_override_needs_a_dotted_name(key: str) -> None:
    assert "is not an override; write key=value" in mistakes(BASE, f"{key}=1")[0]


def test_a_sweep_has_a_bounded_number_of_cases(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(BASE, encoding="utf-8")
    grid = [f"distill.loss.extra.a{n}=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" for n in range(12)]
    with pytest.raises(Exception, match=r"--grid has 1,000,000,000,000 combinations, and a sweep at most 1,000"):
        plan_runs(Sweep(recipe, grid=grid))


def test_aliases_and_merges_are_read_as_copies() -> None:
    text = (
        BASE
        + "distill: &d {steps: 3, batch_size: 2}\nvariants:\n  a: {distill: {<<: *d, steps: 4}}\n  b: {distill: *d}\n"
    )
    recipe = Recipe.parse(text, ["distill.steps=9"])
    assert recipe.distill.steps == 9
    assert recipe.variants["a"].distill == {"steps": 4, "batch_size": 2}
    assert recipe.variants["b"].distill == {"steps": 3, "batch_size": 2}


def test_plain_values_are_read_as_yaml_says() -> None:
    text = "a: [1, -2, 1_000, 1.5, 1.0e-3, true, null, ~, '1', \"2020-01-01\", x y, 'é星']\nb: {c: {}}\n"
    data, places = yaml_text.load_yaml(text, "text")
    assert data == yaml.safe_load(text)
    assert places == {"a": "line 1", "b": "line 2", "b.c": "line 2"}


def test_a_number_that_yaml_reads_as_text_is_shown_as_it_must_be_written() -> None:
    (line,) = mistakes(BASE, "distill.optimizer.learning_rate=1e-5")
    assert line.endswith("should be a valid number (given: '1e-5'); write 1.0e-05 without quotes")


@pytest.mark.parametrize("data", [{1: 2}, {"seed": 10**5000}, {"seed": "a\udcff"}, {"x": ["y" * 5000]}])
def test_data_from_python_is_checked_too(data: dict[str, object]) -> None:
    whole = {**yaml.safe_load(BASE), **data}
    with pytest.raises(RecipeError, match=r"mistake\(s\)"):
        Recipe.from_dict(whole)
    circle: dict[str, object] = {}
    circle["seed"] = circle
    with pytest.raises(RecipeError, match="more than 20 levels"):
        Recipe.from_dict({**yaml.safe_load(BASE), **circle})


def number_fields(model: type[Settings], kind: type, prefix: str = "") -> list[str]:
    """Return the dotted keys of all settings that take a number of a kind."""
    from condistill.config.messages import _members

    found = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        members = _members(field.annotation)
        if not members and kind.__name__ in str(field.annotation):
            found.append(key)
        for member in members:
            found += number_fields(member, kind, f"{key}.")
    return found


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1.0e+400"])
def test_no_setting_is_infinite_or_nan(value: str) -> None:
    keys = {
        key for key in number_fields(Recipe, float) if not key.startswith(("variants", "distill.conditioning.prob"))
    }
    assert len(keys) > 25
    for key in keys:
        for written in (value, f"[{value}, {value}]", f"{{a: {value}}}"):
            assert mistakes(BASE.replace("preset: b-base", "width: 0.5"), f"{key}={written}"), key
    for schedule in (
        "lambda: X",
        "schedule: sigmoid, slope: X",
        "schedule: sigmoid, midpoint: X",
        "schedule: constant, probability: X",
    ):
        assert mistakes(BASE, f"distill.conditioning.probability={{{schedule.replace('X', value)}}}")


def test_every_whole_number_has_an_upper_bound() -> None:
    keys = [key for key in number_fields(Recipe, int) if not key.startswith("variants")]
    assert len(keys) > 25
    for key in keys:
        for value in (10**17 if key not in ("seed", "evaluate.seeds") else 2**63 - 1 + 1, 10**40):
            for written in (str(value), f"[{value}]", f"{{a: [{value}]}}"):
                assert mistakes(BASE.replace("preset: b-base", "width: 0.5"), f"{key}={written}"), key


@pytest.mark.parametrize("name", ["a" * 81, "a" * 300])
def test_the_name_of_a_student_fits_into_file_names(name: str) -> None:
    assert (
        "cannot name a student: use a-z, 0-9, _ and -, at most 80 characters"
        in mistakes(BASE, f"variants={{{name}: {{}}}}")[0]
    )
    assert Recipe.parse(BASE, [f"variants={{{'a' * 80}: {{}}}}"])


def test_defaults_are_within_the_bounds() -> None:
    assert DistillSettings.model_validate(DistillSettings().model_dump(by_alias=True)) == DistillSettings()
    assert math.isfinite(DistillSettings().optimizer.learning_rate)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_file_that_never_ends_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="a recipe has at most 500,000"):
        Recipe.load("/dev/zero")


def test_a_pipe_without_a_writer_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"recipe.yaml must be a mapping"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_recipe_may_come_from_another_command() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"nope: 1")
    os.close(writing)
    with pytest.raises(RecipeError, match="nope is not a setting"):
        Recipe.load(f"/dev/fd/{reading}")
    os.close(reading)
