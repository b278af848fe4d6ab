from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluations import build_evaluation, build_references
from finished import RECIPE, write_finished_run

from condistill.errors import CondistillError
from condistill.evaluate.image_values import IMAGES_NAME
from condistill.report.comparison import report_of_runs
from condistill.report.several import incomparable, joined, load_run, of_other_devices, page_verdict


def rmse(value: float, **changes: Any) -> Any:
    """Return the evaluation of a run with one student, which has the name of the method."""
    scores = {"random_conditioning": {"all": {"latent_rmse": value}}}
    references = build_references("all", other_seed=1.0, random_conditioning=2.0)
    return build_evaluation(scores, **{"classifier": "none", "references": references, **changes})


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_finished_run(tmp_path / "half", rmse(0.3)),
        write_finished_run(tmp_path / "third", rmse(0.6), prompts=("a star", "a box")),
    )


def test_students_are_named_after_their_runs_and_share_one_table(two: tuple[Path, Path]) -> None:
    page = joined([load_run(run) for run in two])
    assert list(page.evaluation.models) == ["teacher", "half", "third"]
    assert page.evaluation.references is not None
    assert list(page.evaluation.references.untrained) == ["half", "third"]
    headline, _ = page_verdict(page)
    assert headline.startswith("half follows its teacher closely and has 27 %")
    assert [part.title for part in page.runs] == ["half", "third"]
    assert [part.variant(part.title) for part in page.runs] == ["random_conditioning"] * 2


def test_several_students_of_a_run_keep_their_names(tmp_path: Path) -> None:
    scores = {name: {"all": {"latent_rmse": 0.5}} for name in ("plain", "small")}
    recipe = RECIPE + "variants: {plain: {}, small: {}}\n"
    runs = [write_finished_run(tmp_path / n / "run", build_evaluation(scores), recipe=recipe) for n in "ab"]
    names = list(joined([load_run(run) for run in runs]).evaluation.models)
    assert names == ["teacher", "run/plain", "run/small", "run (2)/plain", "run (2)/small"]


def test_equal_prompts_from_the_same_noise_become_one_card(two: tuple[Path, Path], tmp_path: Path) -> None:
    other_noise = write_finished_run(tmp_path / "other", rmse(0.5), noise=9)
    grid = joined([load_run(run) for run in (*two, other_noise)]).grid
    cards = [(entry.prompt, list(entry.images)) for entry in grid.splits["all"]]
    assert cards == [
        ("a star", ["teacher", "half", "third"]),
        ("a ring", ["teacher", "half"]),
        ("a box", ["teacher", "third"]),
        ("a star", ["teacher", "other"]),  # the same prompt, but another image of the teacher
        ("a ring", ["teacher", "other"]),
    ]
    values = [max(entry.values.values()) for entry in grid.worst]
    assert values == sorted(values, reverse=True)


def test_runs_that_were_evaluated_differently_are_not_compared(two: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_finished_run(tmp_path / "other", rmse(0.1, num_inference_steps=50, device="a GPU"))
    page = joined([load_run(run) for run in (*two, other)])
    assert incomparable(page) == [
        "The evaluations differ in num inference steps (half: 25; third: 25; other: 50): scores of different runs "
        "cannot be compared."
    ]
    assert of_other_devices(page)[0].startswith("Times were measured on different devices (half: a CPU, 2 threads; ")
    assert page_verdict(page)[0] == "3 runs whose scores cannot be compared: each is judged by itself."
    assert incomparable(joined([load_run(run) for run in two])) == []


@pytest.mark.usefixtures("no_score_plots")
def test_one_page_has_every_run_and_the_runs_stay_as_they_are(two: tuple[Path, Path], tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for run in two for file in run.rglob("*")}
    said: list[str] = []
    out = report_of_runs(list(two), tmp_path / "out", say=said.append)
    html = out.read_text(encoding="utf-8")
    assert "2 runs: half, third" in html
    assert html.count("<dt>half</dt>") == 1
    assert "The full recipe of third" in html
    assert said[0].startswith("half follows its teacher closely")
    assert {file: file.stat().st_mtime_ns for run in two for file in run.rglob("*")} == before
    report_of_runs(list(two), tmp_path / "out")  # a page of ours is replaced


@pytest.mark.usefixtures("no_score_plots")
def test_the_page_of_one_finished_run_is_its_own(two: tuple[Path, Path]) -> None:
    assert report_of_runs([two[0]], None) == two[0] / "report.html"
    assert "b-small follows its teacher closely" in (two[0] / "report.html").read_text(encoding="utf-8")


def test_a_run_without_evaluation_a_run_given_twice_and_files_of_the_user_are_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    half, third = two
    (tmp_path / "empty").mkdir()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "report.html").write_text("my page", encoding="utf-8")
    for paths, out, message in (
        ([tmp_path / "empty"], None, r"has no finished evaluation \(evaluation/figures/metrics.json is missing\)"),
        ([half, tmp_path / "gone"], None, "there is no folder .*gone; give a run directory"),
        ([half, tmp_path / "gone.yaml"], None, "there is no folder runs/gone, where the run of"),
        ([half, half], None, "is given twice; give every run once"),
        ([half, third], half, "is a run directory, which has a report of its own"),
        ([half, third], mine, "is not a report of condistill, so it is not replaced"),
        ([half, third], mine / "report.html", "is a file; give a folder"),
    ):
        with pytest.raises(CondistillError, match=message):
            report_of_runs(paths, out)
    assert (mine / "report.html").read_text(encoding="utf-8") == "my page"


def write_values(run: Path, values: dict[str, list[float]], prompts: list[str]) -> None:
    """Write the table of the images of a run: the latent RMSE of each, by model."""
    rows = [(model, number, value) for model, of_model in values.items() for number, value in enumerate(of_model)]
    columns = {
        "model": [model for model, _, _ in rows],
        "seed": [3] * len(rows),
        "number": [number for _, number, _ in rows],
        "split": ["all"] * len(rows),
        "prompt": [prompts[number] for _, number, _ in rows],
        "latent_rmse": [value for _, _, value in rows],
    }
    pq.write_table(pa.table(columns), run / "evaluation" / "figures" / IMAGES_NAME)


def test_students_of_different_runs_are_compared_image_by_image(two: tuple[Path, Path]) -> None:
    prompts = [f"prompt {number}" for number in range(40)]
    hard = [float(number) for number in range(40)]
    write_values(two[0], {"random_conditioning": [0.3 + each for each in hard]}, prompts)
    write_values(two[1], {"random_conditioning": [0.6 + each for each in hard]}, [*prompts[:30], *["another"] * 10])
    (found,) = joined([load_run(run) for run in two]).evaluation.comparisons
    assert (found.one, found.other, found.metric, found.images) == ("half", "third", "latent_rmse", 30)
    assert found.difference == pytest.approx(-0.3)
    assert found.separates  # the prompts differ far more than the students, and that cancels
    (two[1] / "evaluation" / "figures" / IMAGES_NAME).write_bytes(b"damaged")
    assert joined([load_run(run) for run in two]).evaluation.comparisons == ()
