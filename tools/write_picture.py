"""Write a picture of the teacher's images above those of a student, from the figures of a finished run.

Run as `python tools/write_picture.py runs/demo docs/images/demo.png`. The images are those of the report: each column
has one prompt and the same starting noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import fill
from typing import Any

from PIL import Image

from condistill.config.recipe import SPLITS, TEACHER
from condistill.errors import CondistillError
from condistill.evaluate.record import Grid

_TITLES = {"seen": "prompts that may be cached", "unseen": "prompts that are never cached", "all": "prompts"}


def write_picture(run: Path, out: Path, *, student: str, columns: int) -> Path:
    """Write the picture, and return its path.

    Args:
        run: a run directory whose evaluation is finished.
        student: name of a variant of the recipe.
        columns: prompts of each split.

    Raises:
        CondistillError: the run has no images of the student.
    """
    folder = run / "evaluation" / "figures"
    grid = Grid.read(folder / "grid.json", remedy="finish the run with `condistill run`")
    models = (TEACHER, student)
    cells = [
        (split, entry.prompt, [folder / "grid" / entry.images[model] for model in models if model in entry.images])
        for split in SPLITS
        for entry in grid.splits.get(split, ())[:columns]
    ]
    if not cells or any(len(files) < len(models) or not all(map(Path.is_file, files)) for _, _, files in cells):
        raise CondistillError(f"{folder} has no images of {' and '.join(models)}; finish the run, or name its student")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(models), len(cells), figsize=(1.35 * len(cells), 1.35 * len(models) + 0.75), squeeze=False, dpi=150
    )
    for column, (_, prompt, files) in enumerate(cells):
        for row, file in enumerate(files):
            _show(axes[row][column], file)
        axes[-1][column].set_xlabel(fill(prompt, 20), fontsize=7)
    for row, name in enumerate(("teacher", "student")):
        axes[row][0].set_ylabel(name, fontsize=10)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.88, bottom=0.2, wspace=0.04, hspace=0.04)
    for split in dict.fromkeys(split for split, _, _ in cells):
        places = [axes[0][i].get_position() for i, cell in enumerate(cells) if cell[0] == split]
        figure.text((places[0].x0 + places[-1].x1) / 2, 0.93, _TITLES[split], ha="center", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Software": None})
    pyplot.close(figure)
    return out


def _show(axis: Any, file: Path) -> None:
    with Image.open(file) as image:
        axis.imshow(image.convert("RGB"), interpolation="lanczos")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("out", type=Path, help="image file to write")
    parser.add_argument("--student", default="random_conditioning", help="variant of the recipe")
    parser.add_argument("--columns", type=int, default=4, help="prompts of each split")
    arguments = parser.parse_args()
    try:
        path = write_picture(arguments.run, arguments.out, student=arguments.student, columns=arguments.columns)
    except CondistillError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"wrote {path}")  # noqa: T201 - a script


if __name__ == "__main__":
    main()
