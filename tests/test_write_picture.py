"""The script of maintainers that makes the README's picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from condistill.errors import CondistillError
from condistill.evaluate.record import Grid, GridEntry

SCRIPT = Path(__file__).parents[1] / "tools" / "write_picture.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("write_picture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the images of two prompts per split, and nothing else."""
    folder = tmp_path / "run" / "evaluation" / "figures"
    (folder / "grid").mkdir(parents=True)
    splits = {}
    for split in ("seen", "unseen"):
        entries = []
        for number in range(2):
            images = {model: f"{split}-{number}-{model}.png" for model in ("teacher", "small")}
            for name in images.values():
                Image.new("RGB", (8, 8), "red").save(folder / "grid" / name)
            entries.append(GridEntry(prompt=f"{split} {number}", images=images, correct={}))
        splits[split] = tuple(entries)
    Grid(splits=splits).write(folder / "grid.json")
    return tmp_path / "run"


@pytest.mark.slow  # it imports matplotlib
def test_the_picture_has_a_column_for_each_prompt_and_a_row_for_each_model(
    script: Any, run: Path, tmp_path: Path
) -> None:
    sizes = []
    for columns in (1, 2):
        path = script.write_picture(run, tmp_path / "images" / "a.png", student="small", columns=columns)
        with Image.open(path) as image:
            sizes.append(image.size)
            colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=10**6)}
        assert (255, 0, 0) in colours
    assert sizes[1] == (2 * sizes[0][0], sizes[0][1])


def test_a_run_without_images_of_the_student_is_refused(script: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match="no images of teacher and large; finish the run, or name its"):
        script.write_picture(run, tmp_path / "a.png", student="large", columns=2)
    with pytest.raises(CondistillError, match="finish the run with `condistill run`"):
        script.write_picture(tmp_path, tmp_path / "a.png", student="small", columns=2)
    assert not (tmp_path / "a.png").exists()
