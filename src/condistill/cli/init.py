"""Write a commented recipe for a new teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from condistill.config.recipe import Recipe
from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.prompts.pool import PoolCounts, count_prompts
from condistill.prompts.readers import PromptSource, check_column, describe_source, is_tabular
from condistill.teachers.load import family_class, read_index
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.utils.atomic import write_text
from condistill.utils.home import resolve_path
from condistill.utils.quiet import quiet_libraries
from condistill.workflow.preflight import preflight

_MOST_COUNTED = 1_000_000


def write_recipe(
    teacher: str,
    prompts: Sequence[Path | str],
    out: Path,
    *,
    column: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a recipe that a run accepts, for a teacher and prompt files, and return its path.

    The configs of the teacher and the prompt files are checked first; no weights are loaded.

    Args:
        column: the column of the prompts in csv, jsonl and parquet files.
        say: called with a line about each prompt file, and one about the number of prompts.

    Raises:
        CondistillError: `out` exists, or the teacher or a prompt file cannot be used.
    """
    out = resolve_path(out) if str(out).startswith("~") else out
    if out.exists():
        raise CondistillError(f"{out} exists already and is not overwritten; choose another --out")
    if teacher != MINIATURE and (teacher.startswith((".", "/", "~")) or Path(teacher).is_dir()):
        teacher = str(resolve_path(teacher))
    settings = TeacherSettings(pipeline=teacher)
    family_class(settings, read_index(settings)[1])  # reports a wrong teacher before the prompts are read
    files = [str(path) if str(path) == MINIATURE else str(resolve_path(path)) for path in prompts]
    sources, counts = _read(files, column)
    for source in sources:
        say(str(source))
    say(
        f"prompts: {counts.kept:,} of the {'first ' if counts.read == _MOST_COUNTED else ''}{counts.read:,} may be "
        f"cached ({counts.duplicates:,} duplicates and {counts.empty:,} empty ones dropped)"
    )
    with quiet_libraries():
        skeleton = teacher_skeleton(settings)
        text = _first_accepted(skeleton, teacher=teacher, files=files, column=column, prompts=counts.kept)
    write_text(out, text)
    return out


def _read(files: Sequence[str], column: str | None) -> tuple[list[PromptSource], PoolCounts]:
    """Return the column and the first prompt of each file, and the counts of all prompts, of a million at most."""
    check_column(files, column)
    sources = [describe_source(file, column=column) for file in files]
    for source in sources:
        if not source.first_prompt:
            raise CondistillError(f"{source.path} contains no prompts; choose another file")
    return sources, count_prompts(files, column=column, limit=_MOST_COUNTED)


def _first_accepted(skeleton: Skeleton, *, teacher: str, files: Sequence[str], column: str | None, prompts: int) -> str:
    """Return the first recipe that a run accepts, of those with the usual students for this kind of teacher.

    Raises:
        CondistillError: a run accepts none of them; the error is that of the first.
    """
    family = skeleton.family
    template = resources.files("condistill.cli").joinpath("recipe.yaml.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["yaml"] = _one_line
    refusals: list[CondistillError] = []
    for student in ("preset", "width") if family.can_cut_width else ("depth",):
        text = environment.from_string(template).render(
            teacher=teacher,
            family=family.name,
            guidance=family.guidance,
            guidance_mode=family.guidance.mode(family.denoiser.config),
            student=student,
            can_cut_width=family.can_cut_width,
            files=files,
            column=column,
            tabular=any(map(is_tabular, files)),
            prompts=prompts,
        )
        try:
            preflight(Recipe.parse(text), skeleton)
        except CondistillError as error:
            refusals.append(error)
        else:
            return text
    raise CondistillError(f"no recipe is written: {refusals[0]}") from refusals[0]


def _one_line(value: object) -> str:
    """Return a value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n")[0]
