"""Find the models that a studio shows: those of finished runs, and pipelines that belong to no run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from condistill.config.recipe import TEACHER, Recipe
from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.sampling import planned_sampling
from condistill.run.directory import MARK_NAME, RECIPE_NAME
from condistill.teachers.files import INDEX_NAME
from condistill.teachers.locate import is_plain, read_index
from condistill.teachers.prepare import prepared_settings
from condistill.utils.text import first_line


@dataclass(frozen=True)
class ModelSource:
    """A model, and where it is loaded from."""

    name: str
    """Its name on the page, which no other model has."""
    settings: TeacherSettings
    run: Path | None = None
    """The run that it belongs to."""
    steps: int | None = None
    guidance: float | None = None
    """How its run samples it; None: as its pipeline says."""


@dataclass(frozen=True)
class Sources:
    """What a studio shows."""

    models: tuple[ModelSource, ...]
    runs: tuple[Path, ...]
    notes: tuple[str, ...]
    """Lines for the user: what is not shown, and why."""

    def of_run(self, run: Path) -> tuple[ModelSource, ...]:
        """Return the models of a run, its teacher first."""
        return tuple(model for model in self.models if model.run == run)


def find_sources(arguments: Sequence[str]) -> Sources:
    """Return the models of run directories and pipelines; nothing is loaded.

    Raises:
        CondistillError: an argument is neither, or a pipeline cannot be loaded.
    """
    models: list[ModelSource] = []
    runs: list[Path] = []
    notes: list[str] = []
    for argument in dict.fromkeys(arguments):
        path = Path(argument).expanduser()
        if argument != MINIATURE and (path / MARK_NAME).is_file():
            if path.resolve() not in [run.resolve() for run in runs]:
                runs.append(path)
                models += _models_of_run(path, notes)
        else:
            models.append(_pipeline(argument, path))
    return Sources(_named_apart(_once_each(models)), tuple(runs), tuple(notes))


def _models_of_run(run: Path, notes: list[str]) -> list[ModelSource]:
    """Return the teacher and the finished students of a run; add a line for each that is missing."""
    recipe = Recipe.load(run / RECIPE_NAME)
    teacher = recipe.teacher if is_plain(recipe.teacher) else prepared_settings(recipe.teacher, run / TEACHER)
    models = []
    try:
        read_index(teacher)
        models.append(_of_run(TEACHER, teacher, run, recipe))
    except CondistillError as error:
        notes.append(f"the teacher of {run} is not shown: {first_line(error)}")
    for name in recipe.variants:
        pipeline = run / "pipelines" / name
        if (pipeline / INDEX_NAME).is_file():
            models.append(_of_run(name, prepared_settings(teacher, pipeline), run, recipe))
        else:
            notes.append(f"the student {name} of {run} is not finished, so no image can be generated with it yet")
    return models


def _of_run(name: str, settings: TeacherSettings, run: Path, recipe: Recipe) -> ModelSource:
    sampling = planned_sampling(recipe, None if name == TEACHER else name)
    return ModelSource(name, settings, run, sampling.num_inference_steps, sampling.guidance_scale)


def _pipeline(argument: str, path: Path) -> ModelSource:
    """Return a pipeline that belongs to no run.

    Raises:
        CondistillError: there is none.
    """
    is_name = argument == MINIATURE or (argument.count("/") == 1 and not argument.startswith((".", "/", "~")))
    if not is_name and not path.exists():
        raise CondistillError(
            f"{argument} does not exist; give a run directory, a pipeline directory, one safetensors file, a hub name, "
            "or miniature"
        )
    if argument != MINIATURE and path.is_dir() and not (path / INDEX_NAME).is_file():
        raise CondistillError(
            f"{path} has neither {MARK_NAME} nor {INDEX_NAME}, so it is no run directory and no pipeline; give a run "
            "such as runs/demo, or a pipeline directory"
        )
    settings = TeacherSettings(pipeline=argument)
    read_index(settings)
    return ModelSource(path.resolve().name or argument if path.exists() else argument, settings)


def _once_each(models: Sequence[ModelSource]) -> list[ModelSource]:
    """Return the models without those that are the same files, sampled in the same way; runs can share a teacher."""
    kept: dict[tuple[object, ...], ModelSource] = {}
    for model in models:
        same = (model.settings.model_dump_json(), model.steps, model.guidance)
        kept.setdefault(same, model)
    return list(kept.values())


def _named_apart(models: Sequence[ModelSource]) -> tuple[ModelSource, ...]:
    """Return the models with names that differ: those of several runs, or folders, are preceded by its name."""
    count = Counter(model.name for model in models)
    named: list[ModelSource] = []
    taken: set[str] = set()
    for model in models:
        name = model.name
        if count[name] > 1:
            folder = model.run or Path(model.settings.pipeline).expanduser().resolve().parent
            name = f"{folder.resolve().name}/{name}"
        number, first = 2, name
        while name in taken:
            name, number = f"{first} ({number})", number + 1
        taken.add(name)
        named.append(replace(model, name=name))
    return tuple(named)
