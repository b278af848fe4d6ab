"""`condistill report` with finished runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import build_evaluation
from finished import write_finished_run

from condistill import cli


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr("condistill.report.figures._score_plots", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    scores = {"random_conditioning": {"all": {"latent_rmse": 0.5}}}
    return [write_finished_run(Path("runs", name), build_evaluation(scores)) for name in ("half", "third")]


def report(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exited:
        cli.main(["report", *map(str, arguments)])
    return int(exited.value.code or 0)


def test_finished_runs_become_one_page_and_nothing_runs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("half.yaml").write_text("a recipe that is not read: only its name counts", encoding="utf-8")
    assert report(*runs) == 0
    assert "report: runs/comparison/report.html" in capsys.readouterr().err
    assert report("half.yaml", runs[1], "--out", "page") == 0
    assert Path("page", "report.html").is_file()


def test_options_of_a_recipe_are_refused_for_finished_runs(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(*runs, "-s", "seed=1") == 1
    assert "only reads them, so leave out --set, --update and --dry-run" in capsys.readouterr().err
    assert report(*runs, "--dry-run") == 1
    assert not Path("runs", "comparison").exists()
