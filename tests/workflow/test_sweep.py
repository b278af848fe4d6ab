from __future__ import annotations

import io
import json
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from evaluations import build_evaluation
from rich.console import Console

from condistill import cli
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.evaluate.metrics import Score
from condistill.evaluate.record import METRICS_NAME, Evaluation, ModelRecord
from condistill.profiling.forwards import SampleCost
from condistill.workflow.sweep import run_sweep
from condistill.workflow.sweep_cases import Sweep, SweepRun, grid_cases, named_case, plan_runs

GRID = ("distill.conditioning.probability.lambda=[1, 5]",)
SEEDS = (0, 1)
METRIC = "latent_rmse"


def write_recipe(folder: Path, teacher: Path | str, **changes: Any) -> Path:
    """Write a recipe with 6 images and students that train for one step, and its prompt file in the same folder."""
    (folder / "prompts.txt").write_text("".join(f"a {word} ball\n" for word in "abcdefgh"), encoding="utf-8")
    data = {
        "teacher": {"pipeline": str(teacher)},
        "prompts": {"files": ["prompts.txt"]},
        "cache": {"size": 6, "num_inference_steps": 1, "batch_size": 6, "shard_size": 6},
        "student": {"width": 0.5},
        "distill": {"steps": 1, "batch_size": 2, "preview_every": 0},
        "evaluate": {"prompts_per_split": 2, "grid": 1},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe for tests that load no teacher."""
    return write_recipe(tmp_path, "miniature")


class FinishedSweep:
    """A finished sweep of two values over two seeds."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.sweep = Sweep(write_recipe(folder, teacher), grid=GRID, seeds=SEEDS)
        self.out = folder / "sweep"
        self.run()

    def run(self) -> None:
        console = Console(record=True, width=200, file=io.StringIO())
        run_sweep(self.sweep, self.out, console=console)
        self.printed = console.export_text()

    def measured(self, run: str, name: str) -> ModelRecord:
        """Return the record of a model, read from the file of its run."""
        return Evaluation.load(self.out / "runs" / run).models[name]

    def score(self, seed: int, name: str) -> float:
        """Return the metric of the tests, on all prompts."""
        return self.measured(f"seed={seed}", name).scores["all"][METRIC].value


def skip_slow_parts(patch: pytest.MonkeyPatch) -> None:
    """Skip the slowest parts of a tiny run that no test here needs: counting operations, and the report of each run."""
    for module in ("distill.deriving", "evaluate.costs"):
        patch.setattr(f"condistill.{module}.macs", lambda *_, **__: 1)
    patch.setattr("condistill.report.stage.make", lambda _: None)


@pytest.fixture(scope="module")
def finished(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    with pytest.MonkeyPatch.context() as patch:
        skip_slow_parts(patch)
        return FinishedSweep(tmp_path_factory.mktemp("sweep"), tiny_pipeline_dir)


def markdown_table(text: str) -> dict[str, dict[str, str]]:
    """Return the cells of a table by row and heading."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    headings, _, *rows = lines
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def labels(runs: Sequence[SweepRun]) -> list[tuple[str, list[str]]]:
    return [(run.folder, [case.label for case in run.cases]) for run in runs]


@pytest.mark.slow
def test_the_cases_of_a_grid_are_variants_with_one_cache_per_seed(finished: FinishedSweep) -> None:
    assert {path.name for path in (finished.out / "runs").iterdir()} == {"seed=0", "seed=1"}
    assert len(list(finished.out.rglob("manifest.json"))) == len(SEEDS)
    for seed in SEEDS:
        run = finished.out / "runs" / f"seed={seed}"
        assert {path.name for path in (run / "pipelines").iterdir()} == {"lambda-1", "lambda-5"}
        assert json.loads((run / "cache" / "manifest.json").read_text(encoding="utf-8"))["seed"] == seed


@pytest.mark.slow
def test_the_table_has_mean_and_standard_deviation_over_seeds(finished: FinishedSweep) -> None:
    rows = markdown_table((finished.out / "sweep.md").read_text(encoding="utf-8"))
    assert list(rows) == ["teacher", "lambda=1", "lambda=5"]
    for label, name in (("lambda=1", "lambda-1"), ("lambda=5", "lambda-5")):
        values = [finished.score(seed, name) for seed in SEEDS]
        assert values[0] != values[1]
        mean, spread = rows[label]["Latent RMSE, all"].split(" ± ")
        assert float(mean) == pytest.approx(statistics.fmean(values), rel=5e-3)
        assert float(spread) == pytest.approx(statistics.stdev(values), rel=5e-2)
        assert " ± " not in rows[label]["parameters"]
    assert rows["teacher"]["Latent RMSE, all"] == "-"


@pytest.mark.slow
def test_the_figures_of_every_case_seed_split_and_metric_are_kept(finished: FinishedSweep) -> None:
    result = json.loads((finished.out / "sweep.json").read_text(encoding="utf-8"))
    model = result["models"]["lambda=5"]
    assert (model["name"], model["changes"]) == ("lambda-5", {"distill.conditioning.probability.lambda": 5})
    assert model["seeds"] == {str(seed): finished.measured(f"seed={seed}", "lambda-5").figures() for seed in SEEDS}
    values = [finished.score(seed, "lambda-5") for seed in SEEDS]
    assert model["mean"]["all"][METRIC] == pytest.approx(statistics.fmean(values))
    assert model["std"]["all"][METRIC] == pytest.approx(statistics.stdev(values))


@pytest.mark.slow
def test_the_markdown_records_how_the_figures_were_made(finished: FinishedSweep) -> None:
    text = (finished.out / "sweep.md").read_text(encoding="utf-8")
    assert f"`{finished.sweep.command(finished.out)}`" in text
    assert "Seeds: 0, 1." in text
    assert "Images per model and seed: 2 all; 1 sampling steps, guidance 7.5." in text
    assert "CPU" in text or "NVIDIA" in text
    assert "- lambda=5: `distill.conditioning.probability.lambda=5`; `runs/seed=1/pipelines/lambda-5`" in text
    assert "runs are done" not in text


@pytest.mark.slow
def test_the_table_and_its_path_are_printed(finished: FinishedSweep) -> None:
    assert all(label in finished.printed for label in ("lambda=1", "lambda=5", "Latent RMSE, all"))
    assert f"sweep.md: {finished.out / 'sweep.md'}\n" in finished.printed


@pytest.mark.slow
def test_the_plot_is_an_svg(finished: FinishedSweep) -> None:
    assert ElementTree.parse(finished.out / "sweep.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
def test_a_finished_sweep_repeats_no_stage(finished: FinishedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage runs again")

    before = (finished.out / "sweep.md").read_bytes()
    skip_slow_parts(monkeypatch)
    monkeypatch.setattr("condistill.run.context.load_teacher", refuse)
    finished.run()
    assert (finished.out / "sweep.md").read_bytes() == before


def replace_runs(
    monkeypatch: pytest.MonkeyPatch, scores: Callable[[Recipe], dict[str, Any]], *, stop_at: int = 9
) -> list[Path]:
    """Replace every run by one that writes these scores of every model; the `stop_at`-th run fails.

    Returns:
        the directories of the runs, in their order.
    """
    directories: list[Path] = []

    def compress(recipe: Recipe, out: Path, **_: Any) -> Path:
        directories.append(out)
        if len(directories) == stop_at:
            raise CondistillError("stopped")
        of_model = scores(recipe)
        evaluation = build_evaluation(
            dict.fromkeys(("teacher", *recipe.variants), of_model),
            images_per_split={"seen": 5, "unseen": 4, "all": 9},
        )
        evaluation.write(out / METRICS_NAME)
        return out

    monkeypatch.setattr("condistill.workflow.compress.compress", compress)
    return directories


def test_the_first_metric_has_a_column_per_split_and_every_other_metric_one_column(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = {"all_correct": 0.5, "latent_rmse": 0.3, "shape": 0.7}
    scores = {"seen": split, "unseen": split, "all": {**split, "frechet_classifier": 2.5}}
    replace_runs(monkeypatch, lambda _: scores)
    run_sweep(Sweep(recipe, seeds=SEEDS), tmp_path / "out", console=Console(file=io.StringIO()))
    text = (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    assert "Miniature figures" in text
    assert "5 seen, 4 unseen, 9 all" in text
    assert markdown_table(text)["random_conditioning"] == {
        "case": "random_conditioning",
        "Correct %, seen": "50.0 ± 0.0",
        "Correct %, unseen": "50.0 ± 0.0",
        "Correct %, all": "50.0 ± 0.0",
        "Fréchet distance, all": "2.50 ± 0",
        "Latent RMSE, all": "0.300 ± 0",
        "parameters": "1.88 M",
        "teacher forwards": "3.20 K",
        "student forwards": "1.60 K",
        "cache forwards": "0",
        "training s": "12.5",
    }
    assert markdown_table(text)["teacher"]["training s"] == "-"


def test_a_single_seed_has_no_deviation_and_a_seed_without_a_figure_is_counted_out(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_runs(monkeypatch, lambda recipe: {"all": {"latent_rmse": 0.3} if recipe.seed == 0 else {}})
    for seeds, cell in (((0,), "0.300"), ((0, 1), "0.300 (1 of 2 seeds)")):
        out = tmp_path / str(len(seeds))
        run_sweep(Sweep(recipe, seeds=seeds), out, console=Console(file=io.StringIO()))
        rows = markdown_table((out / "sweep.md").read_text(encoding="utf-8"))
        assert rows["random_conditioning"]["Latent RMSE, all"] == cell


def test_a_single_seed_shows_the_intervals_over_the_prompts_and_keeps_them(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_runs(monkeypatch, lambda _: {"all": {"latent_rmse": Score(value=0.3, low=0.284, high=0.3113)}})
    for seeds, cell in (((0,), "0.300 (0.284 to 0.311)"), (SEEDS, "0.300 ± 0")):
        out = tmp_path / str(len(seeds))
        run_sweep(Sweep(recipe, seeds=seeds), out, console=Console(file=io.StringIO()))
        text = (out / "sweep.md").read_text(encoding="utf-8")
        assert markdown_table(text)["random_conditioning"]["Latent RMSE, all"] == cell
        assert ("95 % interval over the prompts" in text) == (len(seeds) == 1)
        model = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["models"]["random_conditioning"]
        assert model["intervals"]["0"] == {"all": {"latent_rmse": [0.284, 0.3113]}}


def test_a_distance_of_sets_is_not_the_metric_of_the_plot_and_never_alone(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_runs(monkeypatch, lambda _: {split: {"fid": 20.0, "latent_rmse": 0.3} for split in ("seen", "all")})
    run_sweep(Sweep(recipe, seeds=SEEDS), tmp_path / "out", console=Console(file=io.StringIO()))
    text = (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    headings = [name for name in markdown_table(text)["random_conditioning"] if ", " in name]
    assert headings == ["Latent RMSE, seen", "Latent RMSE, all", "FID, all"]
    assert "Latent RMSE" in (tmp_path / "out" / "sweep.svg").read_text(encoding="utf-8")
    assert "FID compares whole sets of images and can mislead alone; not measured: precision and recall." in text


def test_a_failed_sweep_keeps_the_table_of_the_finished_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = replace_runs(monkeypatch, lambda _: {"all": {"latent_rmse": 0.3}}, stop_at=3)
    with pytest.raises(CondistillError, match="stopped"):
        run_sweep(Sweep(recipe, seeds=(3, 4, 5)), tmp_path / "out", console=Console(file=io.StringIO()))
    assert [path.name for path in directories] == ["seed=3", "seed=4", "seed=5"]
    text = (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    assert "**2 of 3 runs are done.**" in text
    assert "Seeds: 3, 4." in text


def test_brackets_in_a_label_are_printed(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_runs(monkeypatch, lambda _: {"all": {"latent_rmse": 0.3}})
    console = Console(record=True, width=200, file=io.StringIO())
    run_sweep(Sweep(recipe, grid=["prompts.unseen_words=[[red], [ball]]"]), tmp_path / "out", console=console)
    printed = console.export_text()
    assert "prompts.unseen_words=[red]" in printed.rpartition("case")[2]


def test_a_directory_that_is_not_a_sweep_is_left_unchanged(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match="is not empty and is not the directory of a sweep; choose another --out"):
        run_sweep(Sweep(recipe), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "prompts.txt"}


def test_without_cases_the_variants_of_the_recipe_run_with_each_seed(tmp_path: Path) -> None:
    variants = {
        "plain": {"distill": {"conditioning": {"probability": {"schedule": "none"}}}},
        "small": {"student": {"width": 0.25}},
        "smaller": {"teacher": "small", "student": {"width": 0.5}},
    }
    runs = plan_runs(Sweep(write_recipe(tmp_path, "miniature", variants=variants), seeds=(2, 3)))
    assert labels(runs) == [
        ("runs/seed=2", ["plain", "small", "smaller"]),
        ("runs/seed=3", ["plain", "small", "smaller"]),
    ]
    assert [run.recipe.seed for run in runs] == [2, 3]
    assert runs[0].recipe.variant("plain")[1].conditioning.probability.schedule == "none"
    assert runs[0].recipe.variant("small")[0].width == 0.25
    assert [variant.teacher for variant in runs[0].recipe.variants.values()] == [None, None, "small"]


def test_a_grid_is_every_combination_of_its_values() -> None:
    cases = grid_cases(["student.width=[0.5, 0.25]", "distill.conditioning.probability=[{lambda: 1}]"])
    assert [(case.name, case.label) for case in cases] == [
        ("width-0_5-probability--lambda-1", "width=0.5, probability={lambda: 1}"),
        ("width-0_25-probability--lambda-1", "width=0.25, probability={lambda: 1}"),
    ]
    assert cases[1].changes == {"student.width": 0.25, "distill.conditioning.probability": {"lambda": 1}}


def test_cases_that_change_the_cache_have_runs_of_their_own(recipe: Path) -> None:
    sweep = Sweep(recipe, grid=["cache.size=[4, 5]", "student.width=[0.5, 0.25]"], cases=["base:"], seeds=SEEDS)
    runs = plan_runs(sweep)
    assert labels(runs)[:3] == [
        ("runs/seed=0", ["base"]),
        ("runs/cache.size=4,seed=0", ["cache.size=4, width=0.5", "cache.size=4, width=0.25"]),
        ("runs/cache.size=5,seed=0", ["cache.size=5, width=0.5", "cache.size=5, width=0.25"]),
    ]
    assert [(run.recipe.cache.size, run.recipe.seed) for run in runs] == [
        (6, 0),
        (4, 0),
        (5, 0),
        (6, 1),
        (4, 1),
        (5, 1),
    ]
    fewer = plan_runs(Sweep(recipe, grid=["cache.size=[5]"]))
    assert fewer[0].folder in {run.folder for run in runs}


@pytest.mark.parametrize(
    ("scores", "teachers"),
    [
        (lambda _: {"all": {"latent_rmse": 0.3}}, ["teacher"]),
        (lambda recipe: {"all": {"latent_rmse": recipe.cache.size}}, ["teacher", "teacher, cache.size=5"]),
    ],
)
def test_a_teacher_with_other_figures_has_a_row_of_its_own(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: Any, teachers: list[str]
) -> None:
    replace_runs(monkeypatch, scores)
    run_sweep(Sweep(recipe, grid=["cache.size=[4, 5]"]), tmp_path / "out", console=Console(file=io.StringIO()))
    rows = markdown_table((tmp_path / "out" / "sweep.md").read_text(encoding="utf-8"))
    assert list(rows) == [*teachers, "cache.size=4", "cache.size=5"]


def test_a_long_label_gives_a_short_file_name(recipe: Path) -> None:
    words = "[[" + ", ".join(f"word{i}" for i in range(100)) + "]]"
    (run,) = plan_runs(Sweep(recipe, grid=[f"prompts.unseen_words={words}"]))
    assert max(len(Path(run.folder).name), len(run.cases[0].name)) < 100


def test_a_case_can_have_values_with_spaces_or_no_settings() -> None:
    case = named_case("wide: student.width=[8, 16, 16]  distill.conditioning.probability={schedule: none}")
    assert case.changes == {"student.width": [8, 16, 16], "distill.conditioning.probability": {"schedule": "none"}}
    assert (named_case("as_it_is:").name, named_case("as_it_is:").changes) == ("as_it_is", {})


def test_cases_replace_the_variants_of_the_recipe_and_come_before_the_grid(recipe: Path) -> None:
    (run,) = plan_runs(Sweep(recipe, grid=["distill.steps=[3]"], cases=["base:"], overrides=["distill.batch_size=4"]))
    assert list(run.recipe.variants) == ["base", "steps-3"]
    assert [run.recipe.variant(name)[1].steps for name in run.recipe.variants] == [1, 3]
    assert run.recipe.variant("steps-3")[1].batch_size == 4


def test_a_case_can_replace_the_schedule_of_the_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "miniature", distill={"conditioning": {"probability": {"lambda": 2.0}}})
    (run,) = plan_runs(Sweep(path, grid=["distill.conditioning.probability.schedule=[none, exponential]"]))
    none, exponential = (run.recipe.variant(case.name)[1].conditioning.probability for case in run.cases)
    assert none.schedule == "none"
    assert exponential.model_dump() == {"schedule": "exponential", "lambda_": 2.0}


def test_a_teacher_with_the_guidance_scale_as_an_input_counts_as_one_evaluation(recipe: Path) -> None:
    text = """variants={
        embedded: {},
        second: {teacher: embedded, student: {width: 1.0}},
    }"""
    (run,) = plan_runs(
        Sweep(
            recipe, overrides=["distill.steps=100", "distill.guidance_distillation=[2, 8]", text], equal_forwards=True
        )
    )
    assert [run.recipe.variant(name)[1].steps for name in ("embedded", "second")] == [100, 150]


def test_equal_forwards_scales_the_steps_of_every_case(recipe: Path) -> None:
    sweep = Sweep(
        recipe, grid=["distill.batch_size=[2, 4]"], overrides=["distill.steps=100"], equal_forwards=True, seeds=SEEDS
    )
    for run in plan_runs(sweep):
        settings = [run.recipe.variant(case.name)[1] for case in run.cases]
        assert [s.steps for s in settings] == [100, 50]
        assert len({s.steps * s.batch_size * SampleCost.of(s).forwards for s in settings}) == 1


def planning_error(sweep: Sweep) -> str:
    """Return the error message of planning an invalid sweep."""
    with pytest.raises(CondistillError) as caught:
        plan_runs(sweep)
    return str(caught.value)


def test_the_mistakes_of_all_cases_are_listed_at_once(recipe: Path) -> None:
    text = planning_error(
        Sweep(recipe, grid=["distill.stpes=[1, 2]"], cases=["small: cache.sise=3", "big: student.width=2.0"])
    )
    for label in ("stpes=1", "stpes=2"):
        assert f"case {label!r}: " in text
    assert text.count("distill.stpes is not a setting; did you mean 'steps'?") == 2
    assert "case 'small': " in text
    assert "cache.sise is not a setting; did you mean 'size'?" in text
    assert "case 'big': " in text
    assert "a fraction of the teacher's channels is above 0 and at most 1" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"grid": ["distill.steps"]}, "--grid: 'distill.steps' is not a setting; write key=value"),
        ({"grid": ["distill.steps=3"]}, "has no list of values; write key=[value, ...]"),
        ({"grid": ["distill.steps=[1"]}, "--grid: the value of 'distill.steps=[1' is not YAML"),
        ({"grid": ["distill.steps=[1]", "distill.steps=[2]"]}, "--grid contains distill.steps twice; write all its"),
        ({"grid": ["distill.steps=[1, 1]"]}, "two cases have the name 'steps-1'"),
        ({"grid": ["seed=[0, 1]"]}, "case 'seed=0': seed cannot differ between cases: use --seeds"),
        ({"grid": ["evaluate.grid=[1, 2]"]}, "evaluate.grid cannot differ between cases: the figures of the"),
        (
            {"cases": ["a: distill.mixed_precision=bf16"]},
            "distill.mixed_precision cannot differ between cases: one process",
        ),
        (
            {"cases": ["a: distill.logging={tracker: tensorboard}"]},
            "distill.logging.tracker cannot differ between cases: it does not change results",
        ),
        ({"cases": ["distill.steps=3"]}, "needs a name of a-z"),
        ({"cases": ["teacher: distill.steps=3"]}, "needs a name of a-z"),
        (
            {"cases": ["a: distill.steps=3 distill.steps=4"]},
            "--case a contains distill.steps twice; remove one",
        ),
        ({"cases": ["a: faster"]}, "--case a: 'faster' is not a setting; write key=value"),
        ({"seeds": [1], "overrides": ["seed=2"]}, "-s seed and --seeds exclude each other; use only --seeds"),
        ({"cases": ["a:"], "overrides": ["variants={}"]}, "variants"),
        (
            {"equal_forwards": True, "cases": ["a: distill.steps=3"]},
            "case 'a': the case sets distill.steps, which",
        ),
    ],
)
def test_an_invalid_sweep_is_refused_before_any_run(recipe: Path, arguments: dict[str, Any], expected: str) -> None:
    assert expected in planning_error(Sweep(recipe, **arguments))


def test_the_command_line_of_a_sweep_gives_the_same_sweep_again(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Sweep, Path]] = []
    monkeypatch.setattr("condistill.workflow.sweep.run_sweep", lambda sweep, out, **_: calls.append((sweep, out)))
    words = ["sweep", str(recipe), "--grid", "student.width=[0.5, 0.25]", "--case", "base:", "--seeds", "0, 2"]
    words += ["-s", "cache.size=3", "--equal-forwards", "-o", str(tmp_path / "out")]
    for _ in range(2):
        with pytest.raises(SystemExit) as exited:
            cli.main(words)
        assert not exited.value.code
        sweep, out = calls[-1]
        words = shlex.split(sweep.command(out))[1:]
    expected = Sweep(recipe, ["student.width=[0.5, 0.25]"], ["base:"], (0, 2), ["cache.size=3"], equal_forwards=True)
    assert calls == [(expected, tmp_path / "out")] * 2


@pytest.mark.parametrize("seeds", ["", "0,x", "1,1", "-1", "0;1"])
def test_seeds_that_are_not_different_whole_numbers_are_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], seeds: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sweep", str(recipe), f"--seeds={seeds}"])
    assert f"--seeds {seeds!r} is not a list of different whole numbers; write it like 0,1,2" in capsys.readouterr().err
