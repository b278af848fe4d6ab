from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import build_evaluation
from PIL import Image

from condistill.evaluate.record import Grid, GridEntry
from condistill.report import ReportInputs, write_report
from condistill.report.html import MOST_BYTES
from condistill.report.pictures import LEVELS, Shelf, album, embed, embedded
from condistill.report.previews import preview_tables


def noise_image(path: Path, side: int, seed: int = 0) -> Path:
    """Write an image that no format makes small."""
    pixels = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def flat_image(path: Path, side: int) -> Path:
    Image.new("RGB", (side, side), (10, 20, 30)).save(path)
    return path


def entries(file: str, count: int, **changes: Any) -> tuple[GridEntry, ...]:
    fields: dict[str, Any] = {"images": {"small": file, "teacher": file}, "correct": {}, **changes}
    return tuple(GridEntry(prompt=f"prompt {number}", **fields) for number in range(count))


def names(shelves: list[Shelf]) -> list[tuple[str, int]]:
    return [(shelf.name, len(shelf.cards)) for shelf in shelves]


def test_a_prompt_of_no_split_is_not_called_all_prompt(tmp_path: Path) -> None:
    flat_image(tmp_path / "a.png", 8)
    grid = Grid(splits={}, ranked_by="latent_rmse", worst=entries("a.png", 1, split="all"))
    (shelf,) = album(grid, tmp_path, budget=MOST_BYTES).shelves
    assert shelf.cards[0].note == ""


def test_the_worst_prompts_come_first_then_the_best_then_random_ones(tmp_path: Path) -> None:
    flat_image(tmp_path / "a.png", 8)
    grid = Grid(
        splits={"unseen": entries("a.png", 2), "seen": entries("a.png", 3)},
        ranked_by="latent_rmse",
        worst=entries("a.png", 2, split="unseen", values={"small": 0.71}),
        best=entries("a.png", 1, split="seen"),
    )
    shelves = album(grid, tmp_path, budget=10**6).shelves
    assert names(shelves) == [("worst", 2), ("best", 1), ("seen", 3), ("unseen", 2)]
    assert (
        shelves[0].lead
        == "The largest disagreement with the teacher first, among all evaluated prompts, by Latent RMSE."
    )
    (card, _) = shelves[0].cards
    assert card.note == "Unseen prompt"
    assert [(picture.model, picture.note) for picture in card.pictures] == [("teacher", ""), ("small", "0.710")]
    unranked = grid.model_copy(update={"ranked_by": None, "worst": (), "best": ()})
    assert names(album(unranked, tmp_path, budget=10**6).shelves) == [("seen", 3), ("unseen", 2)]


@pytest.mark.slow
def test_images_get_smaller_until_they_fit_and_the_page_says_so(tmp_path: Path) -> None:
    file = noise_image(tmp_path / "a.png", 512)
    for budget in (1_200_000, 400_000, 150_000):
        found = album(Grid(splits={"all": entries("a.png", 2)}), tmp_path, budget=budget)
        used = sum(len(picture.uri) for shelf in found.shelves for card in shelf.cards for picture in card.pictures)
        assert used <= budget
        assert names(found.shelves) == [("all", 2)]
    assert "it shows images at " in found.note
    assert "px of 512 px; every image is in evaluation/figures/grid." in found.note
    whole = album(Grid(splits={"all": entries("a.png", 1)}), tmp_path, budget=10**7)
    assert whole.note == ""
    (image,) = embed([file], 10**7)
    assert (image.width, image.height, image.shown) == (512, 512, 512)


def test_what_does_not_fit_is_left_out_from_the_end_of_every_shelf_and_counted(tmp_path: Path) -> None:
    with Image.open(noise_image(tmp_path / "a.png", 128)) as image:
        smallest = len(embedded(image.convert("RGB"), *LEVELS[-1]).uri)
    grid = Grid(splits={"seen": entries("a.png", 6), "unseen": entries("a.png", 6)})
    found = album(grid, tmp_path, budget=8 * smallest + 10)
    assert names(found.shelves) == [("seen", 2), ("unseen", 2)]
    assert found.note.startswith("To keep this page below 5 MB it shows 4 of 12 prompts")


def test_small_images_keep_every_pixel(tmp_path: Path) -> None:
    file = noise_image(tmp_path / "a.png", 64)
    uri = embed([file], 10**6)[0].uri
    assert uri.startswith("data:image/webp;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(file)))


def test_levels_only_get_smaller() -> None:
    assert all(one[0] >= other[0] and one[1] >= other[1] for one, other in pairwise(LEVELS))


@pytest.mark.slow
@pytest.mark.usefixtures("no_score_plots")
def test_no_run_makes_a_page_above_5_mb(tmp_path: Path) -> None:
    for number in range(4):
        noise_image(tmp_path / f"{number}.png", 256, number)
    models = ["teacher", *(f"student_{number}" for number in range(20))]
    images = {name: f"{number % 4}.png" for number, name in enumerate(models)}
    prompt = "a very long prompt, " * 500
    of_split = tuple(GridEntry(prompt=f"{n} {prompt}", images=images, correct={}) for n in range(30))
    inputs = ReportInputs(
        title="large",
        recipe=None,
        evaluation=build_evaluation({name: {"all": {"latent_rmse": 0.5}} for name in models[1:]}, classifier="none"),
        grid=Grid(splits={"seen": of_split, "unseen": of_split}),
        grid_folder=tmp_path,
    )
    page = write_report(tmp_path / "report.html", inputs)
    html = page.read_text(encoding="utf-8")
    assert page.stat().st_size <= MOST_BYTES
    assert re.search(r"it shows \d+ of 60 prompts and images at \d+ px of 256 px", html)
    assert html.count('<article class="card"') > 5
    few = replace(inputs, grid=Grid(splits={"seen": of_split[:1]}))
    assert write_report(tmp_path / "few.html", few).stat().st_size <= MOST_BYTES


def test_previews_of_many_students_share_their_bytes(tmp_path: Path) -> None:
    from grids import write_previews

    folders = {f"s{n}": write_previews(tmp_path / str(n), [100 * step for step in range(9)]) for n in range(4)}
    all_rows = preview_tables(folders)
    budget = sum(table.bytes for table in all_rows) // 2
    fewer = preview_tables(folders, budget=budget)
    assert sum(table.bytes for table in fewer) <= budget
    assert [len(table.rows) for table in fewer] == [4] * 4  # the teacher, the first, one between and the last
