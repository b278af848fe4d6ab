"""Directories of finished runs, made by hand."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from condistill.config.recipe import TEACHER, Recipe
from condistill.evaluate.record import GRID_NAME, METRICS_NAME, Evaluation, Grid, GridEntry
from condistill.run.directory import MARK_NAME, RECIPE_NAME, RunMark

RECIPE = "teacher: {pipeline: miniature}\nprompts: {files: [miniature]}\nstudent: {preset: b-small}\n"


def write_finished_run(
    folder: Path,
    evaluation: Evaluation,
    *,
    prompts: tuple[str, ...] = ("a star", "a ring"),
    noise: int = 0,
    recipe: str = RECIPE,
) -> Path:
    """Write the files of a run that its report reads, and return its directory.

    Args:
        noise: changes the teacher's images, as another seed does.
    """
    figures = folder / "evaluation" / "figures"
    (figures / "grid").mkdir(parents=True)
    for name in (TEACHER, *evaluation.students):
        for number, _ in enumerate(prompts):
            colour = (noise, 40 * number, 0 if name == TEACHER else 200)
            Image.new("RGB", (16, 16), colour).save(figures / "grid" / f"{number}-{name}.png")
    entries = tuple(
        GridEntry(
            prompt=prompt,
            images={name: f"{number}-{name}.png" for name in (TEACHER, *evaluation.students)},
            correct={},
            split="all",
            values=dict.fromkeys(evaluation.students, 0.5 + number),
        )
        for number, prompt in enumerate(prompts)
    )
    grid = Grid(splits={"all": entries}, ranked_by="latent_rmse", worst=entries[::-1], best=entries)
    grid.write(figures / GRID_NAME)
    evaluation.write(figures / METRICS_NAME)
    RunMark(program="condistill", version="1").write(folder / MARK_NAME)
    (folder / RECIPE_NAME).write_text(Recipe.parse(recipe).to_yaml(), encoding="utf-8")
    return folder
