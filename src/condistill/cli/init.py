"""Write a commented recipe for a new teacher."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from condistill.config.recipe import Recipe
from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.prompts.readers import is_tabular, read_prompts
from condistill.teachers.load import family_class, read_index
from condistill.utils.atomic import write_text


def write_recipe(teacher: str, prompts: Sequence[Path], out: Path) -> Path:
    """Write a recipe for a teacher and prompt files, and return its path.

    The pipeline index and the prompt files are checked first; no weights are loaded.

    Raises:
        CondistillError: `out` exists, or the teacher or a prompt file cannot be used.
    """
    if out.exists():
        raise CondistillError(f"{out} exists already and is not overwritten; choose another --out")
    _, index = read_index(TeacherSettings(pipeline=teacher))
    family = family_class(TeacherSettings(pipeline=teacher), index)
    for path in prompts:
        if next(iter(read_prompts(path)), None) is None:
            raise CondistillError(f"{path} contains no prompts; choose another file")
    template = resources.files("condistill.cli").joinpath("recipe.yaml.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["yaml"] = _one_line
    text = environment.from_string(template).render(
        teacher=str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher,
        family=family.name,
        guidance=family.guidance,
        can_cut_width=family.can_cut_width,
        files=[str(path.resolve()) for path in prompts],
        tabular=any(map(is_tabular, prompts)),
        prompts=_count_prompts(prompts),
    )
    Recipe.parse(text, source=str(out))
    write_text(out, text)
    return out


def _one_line(value: object) -> str:
    """Return a value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n")[0]


def _count_prompts(files: Sequence[Path], limit: int = 1_000_000) -> int:
    """Return the number of prompts in several files, or `limit` if there are more."""
    count = 0
    for path in files:
        for _ in read_prompts(path):
            count += 1
            if count >= limit:
                return count
    return count
