"""The commands that run stages; each parses its arguments and calls the workflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from condistill.cli.app import (
    DryRun,
    Out,
    Overrides,
    RecipePath,
    Update,
    command,
    console,
    out_option,
    say,
    user_path,
)
from condistill.errors import CondistillError

if TYPE_CHECKING:
    from condistill.config.recipe import Recipe
    from condistill.run.context import Run


@dataclass(frozen=True)
class _Options:
    """How a command runs stages."""

    update: bool
    dry_run: bool
    quick: bool = False
    """Whether to lower all sizes first."""
    ask: bool = False
    """Whether to ask before a run of more than a day."""


def _run_until(stage: str, recipe: Path, overrides: Sequence[str] | None, out: Path | None, options: _Options) -> Path:
    """Run the stages of a recipe file up to `stage`, and return the run directory; see `_compress`."""
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())  # reports mistakes before anything heavy is imported
    name, is_quick = recipe.stem, loaded.quick
    if options.quick:
        loaded = _quick(loaded, overrides or ())
        name += "-quick"
    path = _compress(loaded, stage, out or Path("runs") / name, options)
    if loaded.quick and not options.dry_run and stage == "report":
        _say_quick(recipe, path, by_option=not is_quick)
    return path


def _quick(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the quick recipe of a recipe; say which overrides it replaced."""
    from condistill.config.quick import quick_recipe, without_effect

    quick = quick_recipe(recipe, processes=int(os.environ.get("WORLD_SIZE", "1")))
    if os.environ.get("RANK", "0") == "0":
        for line in without_effect(overrides, recipe, quick):
            say(f"warning: {line}")
    return quick


def _compress(recipe: Recipe, stage: str, out: Path, options: _Options, *, show_cost: bool = True) -> Path:
    """Run the stages of a recipe up to `stage`; in a dry run, only print the resolved recipe and its plan."""
    from condistill.workflow.compress import compress

    if not options.dry_run:
        return compress(
            recipe,
            out,
            until=stage,
            update=options.update,
            console=console,
            before_training=partial(show_cost_of, ask=options.ask) if show_cost and stage != "prompts" else None,
        )
    show_dry_run(recipe, stage, out)
    return out


def show_dry_run(recipe: Recipe, stage: str, out: Path) -> None:
    """Check the files of a recipe, and print it resolved, with its plan."""
    from condistill.plan import make_plan, show_plan
    from condistill.workflow.preflight import check_inputs

    check_inputs(recipe)
    typer.echo(recipe.to_yaml(), nl=False)
    show_plan(make_plan(recipe), console)
    say(f"dry run: nothing was written; without --dry-run, the stages up to {stage} would write to {out}")


def show_cost_of(run: Run, *, ask: bool) -> None:
    """Print what a run will cost; see `cli.cost.show_cost`."""
    from condistill.cli.cost import show_cost

    show_cost(run, confirm=ask)


def _say_quick(recipe: Path, out: Path, *, by_option: bool) -> None:
    """Say what comes after a finished quick run; the report has said what it is worth.

    Args:
        by_option: whether only the option made it quick, so that the recipe itself is that of the real run.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    if by_option:
        say(f"next: `condistill plan {recipe}` for the cost of the real run, then `condistill run {recipe}`")
    else:
        say("next: write a recipe without --quick (`condistill init` with --budget and --device), and run it")
    say(f"the quick run can be deleted: {out}")


@command
def demo(
    out: Annotated[Path, out_option("Run directory.")] = Path("runs/demo"),
    overrides: Overrides = None,
    update: Update = False,
    dry_run: DryRun = False,
) -> None:
    """Run every stage on the embedded miniature teacher: no download, about ten minutes on two CPU cores.

    A quarter of the shapes are left out of the cached prompts. The demo distills the same student twice, with and
    without random conditioning; a classifier then checks whether each student generates the shapes it never saw.

    Reads only files of the package. Writes the run directory with `report.html`.
    """
    from condistill.miniature.demo import demo_recipe

    _compress(demo_recipe(overrides or ()), "report", out, _Options(update, dry_run), show_cost=False)


@command
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    update: Update = False,
    dry_run: DryRun = False,
    *,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Test the set-up with tiny sizes; default directory: `runs/NAME-quick`."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a run of more than a day.")] = False,
) -> None:
    """Run every stage of a recipe that is missing or out of date.

    The stages are prompts, cache, distill, evaluate and report. Before the first long one, the planned time, memory and
    disk are printed. Reads the recipe, the teacher and the prompt files. Writes the run directory: the students in
    `pipelines/`, and `report.html`.
    """
    _run_until("report", recipe, overrides, out, _Options(update, dry_run, quick=quick, ask=not yes))


@command
def prompts(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Build the text pool: drop duplicates and empty lines, and split seen from unseen prompts.

    Reads the prompt files of the recipe. Writes `prompts/` in the run directory.
    """
    _run_until("prompts", recipe, overrides, out, _Options(update, dry_run))


@command
def cache(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    update: Update = False,
    dry_run: DryRun = False,
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Then compare every shard with its checksum.")] = False,
) -> None:
    """Generate the latents of the cached prompts with the teacher.

    Runs the stages before it if they are missing, and resumes after the last complete shard. Reads the teacher and
    `prompts/`. Writes `cache/` in the run directory.
    """
    if verify and dry_run:
        raise CondistillError("--verify reads the cache and --dry-run reads no results; use only one of them")
    path = _run_until("cache", recipe, overrides, out, _Options(update, dry_run)) / "cache"
    if verify:
        from condistill.cache.latents import LatentCache

        latents = LatentCache.open(path)
        latents.verify()
        say(f"every shard of {path} matches its checksum ({len(latents):,} latents)")


@command
def distill(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Derive the students from the teacher and train them.

    Runs the stages before it if they are missing, and resumes from the newest checkpoint. Reads the teacher,
    `prompts/` and `cache/`. Writes `distill/` and the students in `pipelines/`.
    """
    _run_until("distill", recipe, overrides, out, _Options(update, dry_run))


@command
def report(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            parser=user_path,
            metavar="RECIPE|RUN...",
            help="Recipe file, or run directories of finished runs: all in one page.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        out_option(
            "Run directory of a recipe; of several runs, the folder of their page (default: `runs/comparison`)."
        ),
    ] = None,
    update: Update = False,
    dry_run: DryRun = False,
) -> None:
    """Write the report, a self-contained HTML page, of a recipe or of any number of finished runs.

    With one recipe, runs the stages before it if they are missing. Reads `metrics.json`, `evaluation/` and the training
    losses. Writes `report.html`, its plots as SVG files in `plots/`, and a model card for every student.

    With run directories, or with several recipes, reads their finished runs only, and runs nothing.
    """
    if len(recipes) == 1 and not recipes[0].is_dir():
        _run_until("report", recipes[0], overrides, out, _Options(update, dry_run))
        return
    if overrides or update or dry_run:
        raise CondistillError("the report of finished runs only reads them, so leave out --set, --update and --dry-run")
    from condistill.report.comparison import report_of_runs

    say(f"report: {report_of_runs(recipes, out, say=say)}")


@command
def sweep(
    recipe: RecipePath,
    *,
    grid: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="KEY=[VALUE,...]", help="One case per value. Repeat the option to combine settings."),
    ] = None,
    case: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME: KEY=VALUE ...", help="One case with its name and its changes. Can be repeated."),
    ] = None,
    seeds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="N,N,...", help="Seeds: each case runs once per seed. Default: the seed of the recipe."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        out_option("Sweep directory. Default: `runs/NAME-sweep` for a recipe file `NAME.yaml`."),
    ] = None,
    update: Update = False,
    equal_forwards: Annotated[
        bool,
        typer.Option(
            "--equal-forwards",
            help="Choose distill.steps so that each case costs as many denoiser evaluations as the recipe.",
        ),
    ] = False,
) -> None:
    """Run several cases of a recipe over several seeds, and write one table with standard deviations and one plot.

    The cases are those of `--case` and `--grid`, or else the variants of the recipe. Cases that differ only in
    `student` and `distill` share prompts, cache and the evaluation of the teacher. To resume a sweep that was stopped,
    run the same command again.

    Reads the recipe, the teacher and the prompt files. Writes `sweep.md`, `sweep.svg`, `sweep.json` and the run
    directories in `runs/`.
    """
    from condistill.workflow.sweep import run_sweep
    from condistill.workflow.sweep_cases import Sweep, parse_seeds

    request = Sweep(
        recipe,
        grid or (),
        case or (),
        () if seeds is None else parse_seeds(seeds),
        overrides or (),
        equal_forwards,
    )
    run_sweep(request, out or Path("runs") / f"{recipe.stem}-sweep", update=update, console=console)
