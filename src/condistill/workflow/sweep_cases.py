"""The cases of a sweep, and the runs that they make."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from condistill.config.recipe import TEACHER, Recipe
from condistill.config.yaml_tree import flow
from condistill.errors import CondistillError, RecipeError
from condistill.utils.hashing import key_of

_SAME_FOR_ALL = {
    "seed": "the seeds are given with --seeds",
    "variants": "the cases take the place of the recipe's variants",
    "evaluate": "cases are measured alike, or their figures could not be compared; change it for all with -s",
    "distill.mixed_precision": "one process has one; change it for all with -s",
    "distill.logging.tracker": "it changes no figure; change it for all with -s",
}


@dataclass(frozen=True)
class Case:
    """One row of the table: the recipe with other settings, by dotted key. `name` is its student's in every run."""

    name: str
    label: str
    changes: Mapping[str, Any]
    teacher: str | None = None
    """The case above whose student teaches this one: only where the cases are a recipe's own variants."""


@dataclass(frozen=True)
class SweepRun:
    """One run directory: the cases that can share a cache, at one seed.

    `group` is what they change beside `student` and `distill`, such as `cache.size=64`; empty: nothing.
    """

    group: str
    seed: int
    recipe: Recipe
    cases: tuple[Case, ...]

    @property
    def folder(self) -> str:
        """Its place under the sweep's directory: the same whatever other cases and seeds there are."""
        parts = [_shortened(quote(self.group, safe="=,[]"))] if self.group else []
        return "runs/" + ",".join([*parts, f"seed={self.seed}"])


@dataclass(frozen=True)
class Sweep:
    """What is asked for, in the words of the command line; without grid and cases, the recipe's own variants."""

    recipe: Path
    grid: Sequence[str] = ()
    cases: Sequence[str] = ()
    seeds: Sequence[int] = ()
    overrides: Sequence[str] = ()
    equal_forwards: bool = False

    def command(self, out: Path) -> str:
        words = ["condistill", "sweep", str(self.recipe), *(["--equal-forwards"] if self.equal_forwards else [])]
        for option, texts in (("--grid", self.grid), ("--case", self.cases), ("-s", self.overrides)):
            words += [word for text in texts for word in (option, text)]
        words += ["--seeds", ",".join(map(str, self.seeds))] if self.seeds else []
        return shlex.join([*words, "--out", str(out)])


def _shortened(name: str) -> str:
    """A name that a file system takes; what is cut off lives on in a hash."""
    return name if len(name) <= 80 else f"{name[:63]}-{key_of(name)}"


def _change(text: str, option: str) -> tuple[str, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals):
        raise CondistillError(f"{option}: {text!r} is no setting; write key=value, such as distill.steps=1000")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise CondistillError(f"{option}: the value of {text!r} is not YAML") from error


def grid_cases(options: Sequence[str]) -> list[Case]:
    """Every combination of the values of all `key=[value, ...]`; the last key changes fastest."""
    axes: dict[str, list[Any]] = {}
    for option in options:
        key, values = _change(option, "--grid")
        if not isinstance(values, list) or not values:
            raise CondistillError(
                f"--grid {option!r} has no list of values; write key=[value, ...], such as student.width=[0.5, 0.25]"
            )
        if key in axes:
            raise CondistillError(f"--grid gives {key} twice; put all of its values into one list")
        axes[key] = values
    cases = []
    for chosen in itertools.product(*axes.values()) if axes else ():
        changes = dict(zip(axes, chosen, strict=True))
        short = {key: key.rpartition(".")[2] if _is_students(key) else key for key in axes}
        label = ", ".join(f"{short[key]}={flow(value)}" for key, value in changes.items())
        name = re.sub(r"[^a-z0-9_-]+", "-", label.lower().replace(".", "_").replace("=", "-")).strip("-_")
        cases.append(Case(_shortened(name), label, changes))
    return cases


def named_case(option: str) -> Case:
    """A case from `name: key=value key=value`; without settings it is the recipe as it stands."""
    name, colon, rest = (part.strip() for part in option.partition(":"))
    if not colon or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name == TEACHER:
        raise CondistillError(
            f"--case {option!r} has no name of a-z, 0-9, _ and -, other than {TEACHER!r}; write 'name: key=value "
            "key=value', such as 'short: distill.steps=1000'"
        )
    changes: dict[str, Any] = {}
    for text in filter(None, re.split(r"\s+(?=[\w.]+\s*=)", rest)):  # before every key: values may hold spaces
        key, value = _change(text, f"--case {name}")
        if key in changes:
            raise CondistillError(f"--case {name} gives {key} twice; keep one of the two")
        changes[key] = value
    return Case(name, name, changes)


def _own_cases(recipe: Recipe) -> Iterator[Case]:
    """The recipe's variants as cases."""
    for name, variant in recipe.variants.items():
        parts = {"student": variant.student, "distill": variant.distill}
        changes = {f"{part}.{key}": value for part, of in parts.items() for key, value in of.items()}
        yield Case(name, name, changes, variant.teacher)


def _is_students(key: str) -> bool:
    """Whether a setting is one that the variants of one recipe can differ in."""
    return key.partition(".")[0] in ("student", "distill")


def _refusals(sweep: Sweep, cases: Sequence[Case]) -> Iterator[str]:
    """What cannot be swept, although a recipe could hold it."""
    given = {text.partition("=")[0].strip().partition(".")[0] for text in sweep.overrides}
    if sweep.seeds and "seed" in given:
        yield "-s seed and --seeds are both given; keep --seeds"
    if (sweep.grid or sweep.cases) and "variants" in given:
        yield "-s variants is given, and the cases take the place of variants; write it as a --case"
    names = [case.name for case in cases]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"two cases are called {name!r}; leave one out, or give it a name of its own with --case"
    for case in cases:
        for key, (same, why) in itertools.product(case.changes, _SAME_FOR_ALL.items()):
            if f"{key}.".startswith(f"{same}."):
                yield f"case {case.label!r}: {key} cannot be swept: {why}"


def _load(sweep: Sweep, cases: Sequence[Case], seed: int) -> Recipe:
    """The recipe of the run of these cases."""
    texts = [*sweep.overrides, f"seed={seed}", "variants={}"]
    for case in cases:
        texts.append(f"variants.{case.name}={flow({'teacher': case.teacher})}")
        for key, value in case.changes.items():
            place = f"variants.{case.name}.{key}" if _is_students(key) else key
            texts.append(f"{place}={flow(value)}")
    return Recipe.load(sweep.recipe, texts)


def plan(sweep: Sweep) -> list[SweepRun]:
    """The runs of a sweep, in their order: all cases at the first seed, then at the next.

    Raises:
        CondistillError: lists the mistakes of every case; nothing has been loaded or written.
    """
    base = Recipe.load(sweep.recipe, sweep.overrides)
    asked = [*map(named_case, sweep.cases), *grid_cases(sweep.grid)]
    cases = asked or [*_own_cases(base)]
    mistakes, equal = [*_refusals(sweep, cases)], []
    for case in cases if not mistakes else ():
        try:
            recipe = _load(sweep, [case] if asked else cases, base.seed)
            equal.append(_with_equal_steps(case, recipe, base) if sweep.equal_forwards else case)
        except CondistillError as error:
            mistakes.append(f"case {case.label!r}: {error}")
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    groups: dict[str, list[Case]] = {}
    for case in equal:
        own = sorted(f"{key}={flow(value)}" for key, value in case.changes.items() if not _is_students(key))
        groups.setdefault(",".join(own).replace(", ", ","), []).append(case)
    return [
        SweepRun(group, seed, _load(sweep, together, seed), tuple(together))
        for seed in sweep.seeds or (base.seed,)
        for group, together in groups.items()
    ]


def _with_equal_steps(case: Case, recipe: Recipe, base: Recipe) -> Case:
    """The case with the steps that cost as many forwards, of teacher and student together, as the recipe's own."""
    from condistill.profiling.forwards import forwards_per_step

    if "steps" in recipe.variants[case.name].distill:
        raise CondistillError("it sets distill.steps, which --equal-forwards chooses; leave out one of the two")
    _, settings = recipe.variant(case.name)
    teacher = recipe.variants[case.name].teacher
    told = teacher is not None and recipe.variant(teacher)[1].guidance_range is not None
    budget = base.distill.steps * sum(forwards_per_step(base.distill))
    steps = round(budget / sum(forwards_per_step(settings, teacher_takes_guidance=told)))
    return replace(case, changes={**case.changes, "distill.steps": steps})
