"""The commands: each parses its arguments and calls the package that does the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console

from condistill import __version__
from condistill.cli.app import (
    DryRun,
    Out,
    Overrides,
    PipelineName,
    RecipePath,
    Update,
    app,
    command,
    console,
    say,
    user_path,
)
from condistill.errors import CondistillError

if TYPE_CHECKING:
    from condistill.config.recipe import Recipe


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"condistill {__version__}")
        raise typer.Exit


@app.callback()
def condistill(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and warnings. Can also follow the command.")
    ] = False,
) -> None:
    """Distill a diffusion pipeline (the teacher) into a smaller, faster pipeline (the student).

    The inputs are a diffusers pipeline and a list of prompts; no training images are needed.

    Start with `condistill demo`, which needs no download. For a teacher of your own, write a recipe with
    `condistill init TEACHER --prompts FILE`, then start it with `condistill run recipe.yaml`. To resume a run that
    was stopped, run the same command again.
    """


def _run_until(
    stage: str, recipe: Path, overrides: Sequence[str] | None, out: Path | None, *, update: bool, dry_run: bool
) -> Path:
    """Run the stages of a recipe file up to `stage`, and return the run directory; see `_compress`."""
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())  # reports mistakes before anything heavy is imported
    return _compress(loaded, stage, out or Path("runs") / recipe.stem, update=update, dry_run=dry_run)


def _compress(recipe: Recipe, stage: str, out: Path, *, update: bool, dry_run: bool) -> Path:
    """Run the stages of a recipe up to `stage`; in a dry run, only print the resolved recipe and its plan."""
    from condistill.workflow.compress import compress
    from condistill.workflow.preflight import check_inputs

    if not dry_run:
        return compress(recipe, out, until=stage, update=update, console=console)
    check_inputs(recipe)
    from condistill.plan import make_plan, show_plan

    typer.echo(recipe.to_yaml(), nl=False)
    show_plan(make_plan(recipe), console)
    say(f"dry run: nothing was written; without --dry-run, the stages up to {stage} would write to {out}")
    return out


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", parser=user_path, metavar="PATH", help="Run directory.")] = Path(
        "runs/demo"
    ),
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

    _compress(demo_recipe(overrides or ()), "report", out, update=update, dry_run=dry_run)


@command
def init(
    teacher: Annotated[str, typer.Argument(help="Diffusers pipeline directory or hub name.", show_default=False)],
    prompts: Annotated[
        list[Path], typer.Option("--prompts", "-p", help="Prompt file: txt, csv, jsonl or parquet. Can be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Recipe file to write.")] = Path("recipe.yaml"),
    *,
    column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--column", "-c", help="Column of the prompts. Default: the only column of text."),
    ] = None,
) -> None:
    """Write a commented recipe for a teacher and its prompts.

    Shows the column and the first prompt of every file. Reads the configs of the teacher and the prompt files; no
    weights are loaded. Writes one recipe file, which a run accepts, and never overwrites one.
    """
    from condistill.cli.init import write_recipe

    path = write_recipe(teacher, prompts, out, column=column, say=say)
    say(f"wrote {path}; next: read it, then run `condistill run {path}`")


@command
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe, and print it with every default filled in.

    Reads the recipe, the configs of the teacher and the prompt files; no weights are loaded. Writes no file.
    """
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from condistill.teachers.skeleton import teacher_skeleton
    from condistill.utils.quiet import quiet_libraries
    from condistill.workflow.preflight import check_inputs, examine

    family = check_inputs(loaded)
    with quiet_libraries():
        findings = examine(loaded, teacher_skeleton(loaded.teacher))
    if findings.refused:
        raise CondistillError("\n".join(findings.refused))
    typer.echo(loaded.to_yaml(), nl=False)
    for line in findings.warnings:
        say(f"warning: {line}")
    say(f"{recipe} is valid; the family of the teacher is {family.name}")


@command
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    device: Annotated[
        str,
        typer.Option(help="Device to plan for: a name such as a100-80gb; `present`: that of this machine."),
    ] = "present",
    count: Annotated[int, typer.Option(help="Number of devices.", min=1, max=10**6)] = 1,
    efficiency: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Assumed fraction of the peak speed of tensor cores. Default: 0.3.", min=0.01, max=1),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the speed here, with random weights, instead of assuming it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show the students of a recipe and their costs, before weights are loaded.

    For the students of the recipe: FLOPs, hours, disk space, and memory by part. For comparison: the sizes of all
    presets, widths and depths that fit the teacher.

    Reads the recipe and the configs of the teacher, but not the prompts. Writes no file.
    """
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from condistill.plan import make_plan, show_plan

    assumed = {} if efficiency is None else {"efficiency": efficiency}
    result = make_plan(loaded, device=device, count=count, measure=measure, **assumed)
    if as_json:
        typer.echo(result.to_json())
    else:
        show_plan(result, Console())


@command
def inspect(
    pipeline: PipelineName, levels: Annotated[int, typer.Option(help="Depth of the tree.", min=1, max=100)] = 2
) -> None:
    """Show the denoiser of a pipeline as a tree: layers, widths and costs.

    The tree marks the layers whose features can be compared, and lists the layers that each preset keeps. Reads the
    configs of the pipeline; no weights are loaded. Writes no file.
    """
    from condistill.config.sections import TeacherSettings
    from condistill.plan.inspect import inspect_pipeline

    Console().print(inspect_pipeline(TeacherSettings(pipeline=pipeline), levels=levels))


@command
def run(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Run every stage of a recipe that is missing or out of date.

    The stages are prompts, cache, distill, evaluate and report. Reads the recipe, the teacher and the prompt files.
    Writes the run directory: the students in `pipelines/`, and `report.html`.
    """
    _run_until("report", recipe, overrides, out, update=update, dry_run=dry_run)


@command
def prompts(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Build the text pool: drop duplicates and empty lines, and split seen from unseen prompts.

    Reads the prompt files of the recipe. Writes `prompts/` in the run directory.
    """
    _run_until("prompts", recipe, overrides, out, update=update, dry_run=dry_run)


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
    path = _run_until("cache", recipe, overrides, out, update=update, dry_run=dry_run) / "cache"
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
    _run_until("distill", recipe, overrides, out, update=update, dry_run=dry_run)


@command
def evaluate(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Generate images with the teacher and every student, from the same prompts and noise, and compute the metrics.

    Runs the stages before it if they are missing. Reads the teacher, `prompts/` and `pipelines/`. Writes
    `evaluation/` and `metrics.json`.
    """
    _run_until("evaluate", recipe, overrides, out, update=update, dry_run=dry_run)


@command
def report(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Write the report, a self-contained HTML page.

    Runs the stages before it if they are missing. Reads `metrics.json`, `evaluation/` and the training losses. Writes
    `report.html` and a model card for every student.
    """
    _run_until("report", recipe, overrides, out, update=update, dry_run=dry_run)


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
        typer.Option(
            "--out",
            "-o",
            parser=user_path,
            metavar="PATH",
            help="Sweep directory. Default: `runs/NAME-sweep` for a recipe file `NAME.yaml`.",
        ),
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


@command
def sample(
    pipeline: PipelineName,
    prompt: Annotated[str, typer.Argument(help="Prompt of the image.", show_default=False)],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", parser=user_path, metavar="PATH", help="Image file to write.")
    ] = Path("sample.png"),
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Sampling steps. Default: the number that the pipeline was trained for, else 25.", min=1, max=10**4
        ),
    ] = None,
    guidance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Guidance scale. Default: the scale that the pipeline was trained for, else 7.5.", min=0, max=10**4
        ),
    ] = None,
) -> None:
    """Generate one image with a pipeline.

    With the same seed, a teacher and its students start from the same noise. Reads the pipeline. Writes one image.
    """
    from condistill.pipelines.generate import generate_image

    say(f"wrote {generate_image(pipeline, prompt, out, seed=seed, steps=steps, guidance=guidance)}")


@command
def doctor() -> None:
    """Check the installation: versions, devices, free disk space, and how to install what is missing.

    Reads no recipe. Writes no file. The exit code is 1 if condistill cannot run.
    """
    from condistill.cli.doctor import check_installation

    if not check_installation(Console()):
        raise CondistillError("condistill cannot run on this machine; the table above shows what is missing")
