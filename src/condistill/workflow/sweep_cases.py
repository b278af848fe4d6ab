"""The cases of a sweep, and the plan of its runs."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from condistill.config.recipe import MAX_NAME, TEACHER, Recipe, is_student_name
from condistill.config.yaml_text import MAX_TEXT, load_yaml
from condistill.config.yaml_tree import flow, split_change
from condistill.errors import CondistillError, RecipeError
from condistill.utils.hashing import key_of
from condistill.utils.text import shorten

_MOST_CASES = 1000
_MOST_SEEDS = 1000

_FIXED_SETTINGS = {
    "seed": "use --seeds",
    "variants": "the cases replace the variants of the recipe",
    "evaluate": "the figures of the cases would not be comparable; change it for all cases with -s",
    "distill.mixed_precision": "one process supports only one precision; change it for all cases with -s",
    "distill.logging.tracker": "it does not change results; change it for all cases with -s",
}
"""Settings that must be equal in all cases, with the reason."""


@dataclass(frozen=True)
class Case:
    """One row of the table: the recipe with some settings changed."""

    name: str
    """Name of the student in each run directory."""
    label: str
    """Name of the row."""
    changes: Mapping[str, Any]
    """Values of the changed settings by dotted key."""
    teacher: str | None = None
    """Name of an earlier case whose student is the teacher of this one; only for variants of the recipe."""


@dataclass(frozen=True)
class SweepRun:
    """One run directory: cases that share a cache, with one seed."""

    group: str
    """Changes outside of `student` and `distill`, which all cases of the run share, such as `cache.size=64`."""
    seed: int
    recipe: Recipe
    cases: tuple[Case, ...]

    @property
    def folder(self) -> str:
        """Path of the run under the directory of the sweep; it does not depend on the other runs of the sweep."""
        parts = [_shorten(quote(self.group, safe="=,[]"))] if self.group else []
        return "runs/" + ",".join([*parts, f"seed={self.seed}"])


@dataclass(frozen=True)
class Sweep:
    """The arguments of `condistill sweep`. Without `grid` and `cases`, the cases are the variants of the recipe."""

    recipe: Path
    grid: Sequence[str] = ()
    """Texts such as `student.width=[0.5, 0.25]`."""
    cases: Sequence[str] = ()
    """Texts such as `short: distill.steps=1000`."""
    seeds: Sequence[int] = ()
    """Default: the seed of the recipe."""
    overrides: Sequence[str] = ()
    """Changes for all cases, such as `cache.size=100`."""
    equal_forwards: bool = False
    """Whether to choose `distill.steps` so that each case has as many forwards as the recipe."""

    def command(self, out: Path) -> str:
        """Return the command line that runs this sweep in the directory `out`."""
        words = ["condistill", "sweep", str(self.recipe), *(["--equal-forwards"] if self.equal_forwards else [])]
        for option, texts in (("--grid", self.grid), ("--case", self.cases), ("-s", self.overrides)):
            words += [word for text in texts for word in (option, text)]
        words += ["--seeds", ",".join(map(str, self.seeds))] if self.seeds else []
        return shlex.join([*words, "--out", str(out)])


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a text such as `0,1,2`.

    Raises:
        CondistillError: the text is no such list, or has too many seeds.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,18}", word) for word in words) or len(set(map(int, words))) < len(words):
        raise CondistillError(
            f"--seeds {shorten(text)!r} is not a list of different whole numbers; write it like 0,1,2"
        )
    if len(words) > _MOST_SEEDS:
        raise CondistillError(f"--seeds has {len(words):,} seeds, and a sweep at most {_MOST_SEEDS}; give fewer")
    return tuple(map(int, words))


def _shorten(name: str) -> str:
    """Return a file name of at most `MAX_NAME` characters; the end of a longer name is replaced by a hash."""
    return name if len(name) <= MAX_NAME else f"{name[:63]}-{key_of(name)}"


def _parse_change(text: str, option: str) -> tuple[str, Any]:
    """Return the key and the value of a text `key=value`; `option` is its origin for error messages."""
    key, value = split_change(text, "a setting", prefix=f"{option}: ")
    return key, load_yaml(value, f"{option}: the value of {shorten(text, 200)!r}")[0]


def grid_cases(texts: Sequence[str]) -> list[Case]:
    """Return a case for each combination of the values of texts `key=[value, ...]`; the last key changes fastest."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, values = _parse_change(text, "--grid")
        if not isinstance(values, list) or not values:
            raise CondistillError(
                f"--grid {text!r} has no list of values; write key=[value, ...], such as student.width=[0.5, 0.25]"
            )
        if key in axes:
            raise CondistillError(f"--grid contains {key} twice; write all its values in one list")
        axes[key] = values
    if (count := math.prod(map(len, axes.values()))) > _MOST_CASES:
        raise CondistillError(
            f"--grid has {count:,} combinations, and a sweep at most {_MOST_CASES:,}; give fewer values"
        )
    cases = []
    short_keys = {key: key.rpartition(".")[2] if _is_variant_setting(key) else key for key in axes}
    for values in itertools.product(*axes.values()) if axes else ():
        changes = dict(zip(axes, values, strict=True))
        label = ", ".join(f"{short_keys[key]}={flow(value)}" for key, value in changes.items())
        name = re.sub(r"[^a-z0-9_-]+", "-", label.lower().replace(".", "_").replace("=", "-")).strip("-_")
        cases.append(Case(_shorten(name), label, changes))
    return cases


def named_case(text: str) -> Case:
    """Return the case of a text `name: key=value key=value`; without settings, the case is the unchanged recipe."""
    if len(text) > MAX_TEXT:
        raise CondistillError(
            f"--case has {len(text):,} characters, at most {MAX_TEXT:,} are read; write a shorter one"
        )
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not colon or not is_student_name(name):
        raise CondistillError(
            f"--case {shorten(text)!r} needs a name of a-z, 0-9, _ and -, at most {MAX_NAME} characters and not "
            f"{TEACHER!r}; write 'name: key=value key=value', such as 'short: distill.steps=1000'"
        )
    changes: dict[str, Any] = {}
    for change in filter(None, re.split(r"\s+(?=[\w.]+\s*=)", rest)):  # only before keys: values may contain spaces
        key, value = _parse_change(change, f"--case {name}")
        if key in changes:
            raise CondistillError(f"--case {name} contains {key} twice; remove one of them")
        changes[key] = value
    return Case(name, name, changes)


def _variant_cases(recipe: Recipe) -> Iterator[Case]:
    """Yield the variants of a recipe as cases."""
    for name, variant in recipe.variants.items():
        sections = {"student": variant.student, "distill": variant.distill}
        changes = {
            f"{section}.{key}": value for section, settings in sections.items() for key, value in settings.items()
        }
        yield Case(name, name, changes, variant.teacher)


def _is_variant_setting(key: str) -> bool:
    """Return whether the variants of a recipe can differ in a setting."""
    return key.partition(".")[0] in ("student", "distill")


def _mistakes(sweep: Sweep, cases: Sequence[Case]) -> Iterator[str]:
    """Yield a message for each setting and case that is valid in a recipe but not in this sweep."""
    overridden = {text.partition("=")[0].strip().partition(".")[0] for text in sweep.overrides}
    if sweep.seeds and "seed" in overridden:
        yield "-s seed and --seeds exclude each other; use only --seeds"
    if (sweep.grid or sweep.cases) and "variants" in overridden:
        yield "-s variants has no effect, because the cases replace the variants; write the variants with --case"
    names = [case.name for case in cases]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"two cases have the name {name!r}; remove one, or give it another name with --case"
    for case in cases:
        for key, (fixed, reason) in itertools.product(_leaf_keys(case.changes), _FIXED_SETTINGS.items()):
            if f"{key}.".startswith(f"{fixed}."):
                yield f"case {case.label!r}: {key} cannot differ between cases: {reason}"


def _leaf_keys(changes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted key of every changed setting, also of those in a mapping."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{key}.{inner}" for inner in _leaf_keys(value))
        else:
            yield key


def _load(sweep: Sweep, cases: Sequence[Case], seed: int) -> Recipe:
    """Return the recipe of a run with these cases as variants."""
    overrides = [*sweep.overrides, f"seed={seed}", "variants={}"]
    for case in cases:
        overrides.append(f"variants.{case.name}={flow({'teacher': case.teacher})}")
        for key, value in case.changes.items():
            full_key = f"variants.{case.name}.{key}" if _is_variant_setting(key) else key
            overrides.append(f"{full_key}={flow(value)}")
    return Recipe.load(sweep.recipe, overrides)


def plan_runs(sweep: Sweep) -> list[SweepRun]:
    """Return the runs of a sweep in their order: all cases with the first seed, then with the next seed.

    Nothing is loaded or written.

    Raises:
        CondistillError: the message lists the mistakes of all cases.
    """
    base = Recipe.load(sweep.recipe, sweep.overrides)
    groups: dict[str, list[Case]] = {}
    for case in _checked_cases(sweep, base):
        changes = sorted(f"{key}={flow(value)}" for key, value in case.changes.items() if not _is_variant_setting(key))
        groups.setdefault(",".join(changes).replace(", ", ","), []).append(case)
    return [
        SweepRun(group, seed, _load(sweep, cases, seed), tuple(cases))
        for seed in sweep.seeds or (base.seed,)
        for group, cases in groups.items()
    ]


def _checked_cases(sweep: Sweep, base: Recipe) -> list[Case]:
    """Return the cases of a sweep, with equal forwards if it has that option.

    Raises:
        RecipeError: lists the mistakes of all cases.
    """
    requested = [*map(named_case, sweep.cases), *grid_cases(sweep.grid)]
    cases = requested or [*_variant_cases(base)]
    mistakes, checked = [*_mistakes(sweep, cases)], []
    for case in cases if not mistakes else ():
        try:
            recipe = _load(sweep, [case] if requested else cases, base.seed)
            checked.append(_with_equal_forwards(case, recipe, base) if sweep.equal_forwards else case)
        except CondistillError as error:
            mistakes.append(f"case {case.label!r}: {error}")
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return checked


def _with_equal_forwards(case: Case, recipe: Recipe, base: Recipe) -> Case:
    """Return the case with the `distill.steps` that give it as many forwards as the base recipe.

    Forwards of the teacher and of the student are added.
    """
    from condistill.profiling.forwards import SampleCost

    if "steps" in recipe.variants[case.name].distill:
        raise CondistillError("the case sets distill.steps, which --equal-forwards chooses; remove one of them")
    _, settings = recipe.variant(case.name)
    teacher = recipe.variants[case.name].teacher
    teacher_takes_guidance = teacher is not None and recipe.variant(teacher)[1].guidance_range is not None
    cost = SampleCost.of(settings, teacher_takes_guidance=teacher_takes_guidance)
    forwards = base.distill.steps * base.distill.batch_size * SampleCost.of(base.distill).forwards
    steps = round(forwards / (settings.batch_size * cost.forwards))
    return replace(case, changes={**case.changes, "distill.steps": steps})
