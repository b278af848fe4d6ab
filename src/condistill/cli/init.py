"""Write a commented recipe for a new teacher."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from condistill.cli.cost import LONG_HOURS, cost_lines
from condistill.cli.prompt_files import count_and_describe, long_prompts_warning
from condistill.config.quick import quick_recipe
from condistill.config.recipe import Recipe, resolve_files
from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.evaluate.networks import NETWORKS
from condistill.plan.budget import parse_budget
from condistill.plan.devices import PRESENT, Hardware, find_device
from condistill.plan.fit import Fit, fit
from condistill.plan.ladder import Case
from condistill.prompts.readers import is_tabular
from condistill.teachers.load import family_class, read_index
from condistill.teachers.locate import teacher_warnings
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.utils.atomic import write_text
from condistill.utils.format import byte_size, duration
from condistill.utils.hardware import default_device
from condistill.utils.home import resolve_path
from condistill.utils.quiet import quiet_libraries
from condistill.workflow.preflight import check_first_prompts, preflight

_COMMENT_COLUMN, _LINE_LENGTH = 39, 120
_NEAR = 2
"""Folders up from the recipe to a file that is named relative to it."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Goal:
    """What a recipe is written for."""

    budget: str | None = None
    """Time of the whole run, such as `48h`."""
    device: str | None = None
    """A name of `DEVICES`; None: the device of this machine."""
    count: int = 1
    quick: bool = False
    """Whether the sizes only test the set-up."""


def write_recipe(
    teacher: str,
    prompts: Sequence[Path | str],
    out: Path,
    *,
    column: str | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    goal: Goal = Goal(),
    say: Say = lambda _: None,
) -> Path:
    """Write a recipe that a run accepts, for a teacher and prompt files, and return its path.

    The configs of the teacher and the prompt files are checked first; no weights are loaded.

    Args:
        column: the column of the prompts in csv, jsonl and parquet files.
        options: other settings of the recipe's `teacher`, such as `{"variant": "fp16"}`; paths in them start at the
            working directory.
        say: called with a line about each prompt file, about each choice, and about the cost.

    Raises:
        CondistillError: `out` exists, the teacher or a prompt file cannot be used, no student fits into the memory of
            the device, or the budget is too small.
    """
    out = resolve_path(out) if str(out).startswith("~") else out
    if out.exists():
        raise CondistillError(f"{out} exists already and is not overwritten; choose another --out")
    budget = None if goal.budget is None else parse_budget(goal.budget)
    device = find_device(goal.device or PRESENT)
    settings = teacher_settings(teacher, options)
    location, index = read_index(settings)
    family_class(settings, index)  # reports a wrong teacher before the prompts are read
    for line in teacher_warnings(settings):
        say(f"warning: {line}")
    files = [str(path) if str(path) == MINIATURE else str(resolve_path(path)) for path in prompts]
    counts = count_and_describe(files, column, say)
    with quiet_libraries():
        skeleton = teacher_skeleton(settings)
        check_first_prompts(files, column, skeleton.family)
        if warning := long_prompts_warning(files, column, skeleton.family, location):
            say(f"warning: {warning}")
        case = Case(skeleton, Hardware(device, goal.count), base_settings(settings, skeleton, files, column))
        say(f"choosing the settings for {_devices(case)}" + (f" and {goal.budget}" if goal.budget else ""))
        fitted = fit(case, prompts=counts.kept, budget=budget)
        text = Writer(case, fitted, goal, out.absolute().parent, say).text()
    write_text(out, text)
    return out


def teacher_settings(teacher: str, options: Mapping[str, Any]) -> TeacherSettings:
    """Return the settings of a teacher, with absolute paths.

    Raises:
        CondistillError: an option is no setting of `teacher`, or has a wrong value.
    """
    usual = {"prompts": {"files": [MINIATURE]}, "student": {"preset": "b-base"}}
    data = {"teacher": {"pipeline": teacher, **options}, **usual}
    resolve_files(data, Path())
    return Recipe.from_dict(data, source="the teacher").teacher


def base_settings(
    settings: TeacherSettings, skeleton: Skeleton, files: Sequence[str], column: str | None
) -> dict[str, Any]:
    """Return the settings of the recipe that do not depend on device and budget."""
    family, sampling = skeleton.family, skeleton.family.default_sampling()
    mode = family.guidance.mode(family.denoiser.config)
    scale = 1.0 if mode == "none" else sampling.guidance_scale
    given = settings.model_dump(exclude_unset=True)
    if sampling.resolution is not None:
        given = {"resolution": sampling.resolution, **given}
    base: dict[str, Any] = {
        "teacher": {"pipeline": settings.pipeline, "family": family.name, **given},
        "prompts": {"files": list(files), "column": column},
        "cache": {"num_inference_steps": sampling.num_inference_steps, "guidance_scale": scale},
    }
    if mode == "embedded" and family.guidance.scale_range:
        base["distill"] = {"guidance_distillation": list(family.guidance.scale_range)}
    return base


def _devices(case: Case) -> str:
    hardware = case.hardware
    return hardware.device.name if hardware.count == 1 else f"{hardware.count} x {hardware.device.name}"


@dataclass(frozen=True)
class Writer:
    """Writes the recipe with the settings that were chosen."""

    case: Case
    fitted: Fit
    goal: Goal
    folder: Path
    say: Say

    def text(self) -> str:
        """Return the text of the recipe, and say what was chosen and what it costs.

        Raises:
            CondistillError: a run would refuse it.
        """
        recipe = Recipe.from_dict(_merged(self.case.base, self.fitted.settings))
        cost = self.fitted.cost
        if self.goal.quick:
            recipe = quick_recipe(recipe, processes=self.goal.count)
            cost = self.case.cost(recipe)
        else:
            for choice in self.fitted.choices:
                self.say(str(choice))
        lines = cost_lines(cost)
        text = self._render(recipe, lines)
        self._check(text, recipe)
        for line in lines:
            self.say(line)
        if self.goal.device is None and default_device().type == "cpu" and cost.hours > LONG_HOURS:
            self.say(
                f"warning: there is no GPU here, where the run would take {duration(3600 * cost.hours)}; for another "
                "machine, give its device and the time that you have: --device rtx-4090 --budget 48h"
            )
        return text

    def _check(self, text: str, expected: Recipe) -> None:
        """Check that the written recipe is the planned one, and that a run accepts it."""
        written = Recipe.parse(text, folder=self.folder)
        assert written == expected, text
        try:
            preflight(written, self.case.skeleton)
        except CondistillError as error:
            raise CondistillError(f"no recipe is written: {error}") from error

    def _render(self, recipe: Recipe, lines: Sequence[str]) -> str:
        case, goal = self.case, self.goal
        family = case.skeleton.family
        template = resources.files("condistill.cli").joinpath("recipe.yaml.j2").read_text(encoding="utf-8")
        environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
        environment.filters |= {"yaml": _one_line, "byte_size": byte_size}
        teacher, prompts = self._with_relative_paths(case.base["teacher"]), case.base["prompts"]
        budget = f" and a budget of {goal.budget}" if goal.budget else ""
        reasons = {choice.setting: choice.reason for choice in self.fitted.choices}
        if goal.quick:
            reasons |= {"steps": "a quick test", "cache": "a quick test"}
        data = recipe.model_dump(by_alias=True)
        text = environment.from_string(template).render(
            header=[f"Written by `condistill init` for {_devices(case)}{budget}.", *lines],
            quick=goal.quick,
            teacher=teacher,
            files=[self._relative(file) for file in prompts["files"]],
            column=prompts["column"],
            tabular=any(map(is_tabular, prompts["files"])),
            student=self.fitted.settings["student"],
            reasons=reasons,
            sampling_reason="a quick test" if goal.quick else family.default_sampling().reason,
            guidance=family.guidance,
            guidance_mode=family.guidance.mode(family.denoiser.config),
            can_cut_width=family.can_cut_width,
            can_distill_guidance=family.can_cut_width and recipe.cache.guidance_scale > 1,
            networks=() if case.base["teacher"]["pipeline"] == MINIATURE else NETWORKS.values(),
            **{section: data[section] for section in ("cache", "distill", "evaluate")},
        )
        return "\n".join(map(_aligned, text.split("\n")))

    def _with_relative_paths(self, value: Any) -> Any:
        """Return the settings of the teacher with paths that are relative to the recipe where they are near."""
        if isinstance(value, Mapping):
            return {key: self._with_relative_paths(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._with_relative_paths(inner) for inner in value]
        is_path = isinstance(value, str) and Path(value).is_absolute()
        return self._relative(value, always_path=True) if is_path else value

    def _relative(self, name: str, *, always_path: bool = False) -> str:
        """Return a path relative to the recipe's folder, if it is not far from it.

        Args:
            always_path: begin a relative path with a dot, so that it cannot be the name of something else.
        """
        if name == MINIATURE:
            return name
        relative = os.path.relpath(name, self.folder.resolve())
        if Path(relative).parts.count("..") > _NEAR:
            return name
        return f"./{relative}" if always_path and not relative.startswith(".") else relative


def _merged(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of both."""
    return {name: {**base.get(name, {}), **settings.get(name, {})} for name in {**base, **settings}}


def _aligned(line: str) -> str:
    """Return a line of the template with its comment, which follows a tab, in one column; a long one is wrapped."""
    setting, tab, comment = line.partition("\t# ")
    if not tab:
        return line
    column = max(_COMMENT_COLUMN, len(setting) + 1)
    first, *rest = textwrap.wrap(comment, max(_LINE_LENGTH - column - 2, 40)) or [""]
    more = (f"{'':{_COMMENT_COLUMN}}# {part}" for part in rest)
    return "\n".join([f"{setting:{column}}# {first}", *more])


def _one_line(value: object) -> str:
    """Return a value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n")[0]
