"""One command per stage, plus those for recipes, plans, sweeps and pipelines. Parses and delegates."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer
from rich.console import Console

from condistill import __version__
from condistill.cli.app import DryRun, Out, Overrides, RecipePath, Stopped, Update, app, command, console, say
from condistill.cli.texts import told, usage
from condistill.errors import CondistillError
from condistill.utils.malloc import keep_freed_memory
from condistill.utils.quiet import quiet_environment

if TYPE_CHECKING:
    from condistill.config.recipe import Recipe

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"condistill {__version__}")
        raise typer.Exit


@app.callback()
def condistill(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and warnings; also after the command.")
    ] = False,
) -> None:
    """Turn a diffusion pipeline (the teacher) and a list of prompts into a smaller, faster pipeline that draws
    the same things, without a single training image.

    Start with `condistill demo`, which needs no download, then `condistill init TEACHER --prompts FILE` and
    `condistill run recipe.yaml`. A run goes on where it was stopped: run the same command again.
    """


def _run_until(
    stage: str, recipe: Path, overrides: Sequence[str] | None, out: Path | None, *, update: bool, dry_run: bool
) -> Path:
    """Run a recipe up to a stage; or, in a dry run, tell what that means."""
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())  # a mistake is told before anything heavy is imported
    return _compress(loaded, stage, out or Path("runs") / recipe.stem, update=update, dry_run=dry_run)


def _compress(recipe: Recipe, stage: str, out: Path, *, update: bool, dry_run: bool) -> Path:
    from condistill.workflow.compress import compress
    from condistill.workflow.preflight import check_inputs

    if not dry_run:
        return compress(recipe, out, until=stage, update=update, console=console)
    check_inputs(recipe)
    from condistill.plan import make_plan, show_plan

    typer.echo(recipe.to_yaml(), nl=False)
    show_plan(make_plan(recipe), console)
    say(f"nothing was written; without --dry-run, the {stage} stage and those before it would go to {out}")
    return out


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's directory.")] = Path("runs/demo"),
    overrides: Overrides = None,
    update: Update = False,
    dry_run: DryRun = False,
) -> None:
    """Show the whole thing on the embedded miniature: no download, about ten minutes on two cores.

    A quarter of the shapes are left out of the cached prompts. The same student is distilled twice, plainly and
    with random conditioning, and a classifier tells which of them can draw the shapes it never saw.
    """
    from condistill.miniature.demo import demo_recipe

    _compress(demo_recipe(overrides or ()), "report", out, update=update, dry_run=dry_run)


@command
def init(
    teacher: Annotated[str, typer.Argument(help="A diffusers pipeline directory or hub name.", show_default=False)],
    prompts: Annotated[
        list[Path], typer.Option("--prompts", "-p", help="Prompts: txt, csv, jsonl or parquet. Repeat for more.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for a teacher and its prompts."""
    from condistill.cli.init import write_recipe

    path = write_recipe(teacher, prompts, out)
    say(f"wrote {path}; read it, then: condistill run {path}")


@command
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe, its teacher and its prompt files, and print it with every default filled in.

    Nothing is loaded and nothing is written.
    """
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from condistill.utils.quiet import quiet_libraries
    from condistill.workflow.preflight import preflight

    with quiet_libraries():
        skeleton = preflight(loaded)
    typer.echo(loaded.to_yaml(), nl=False)
    say(f"{recipe} is valid; the teacher is of family {skeleton.family.name}")


@command
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    device: Annotated[
        str, typer.Option(help="What it would run on: a name such as a100-80gb; `present` is what is here.")
    ] = "present",
    count: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    efficiency: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of the peak of tensor cores that is reached.", min=0.01, max=1),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time networks of random weights here, instead of assuming.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as data.")] = False,
) -> None:
    """Tell what a recipe will make and what it will cost, before a weight is loaded.

    Every student that the teacher could have, and for the recipe's own: arithmetic, hours, disk, and memory by part.
    Prompts are not looked at.
    """
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from condistill.plan import make_plan, show_plan

    assumed = {} if efficiency is None else {"efficiency": efficiency}
    made = make_plan(loaded, device=device, count=count, measure=measure, **assumed)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
    else:
        show_plan(made, Console())


@command
def inspect(
    pipeline: Annotated[
        str, typer.Argument(help="A pipeline directory or hub name, or `miniature`.", show_default=False)
    ],
    levels: Annotated[int, typer.Option(help="How deep the tree goes.", min=1)] = 2,
) -> None:
    """Show a pipeline's denoiser as a tree: layers, widths, costs, what is compared, what each preset keeps."""
    from condistill.config.sections import TeacherSettings
    from condistill.plan.inspect import inspect_pipeline

    Console().print(inspect_pipeline(TeacherSettings(pipeline=pipeline), levels=levels))


@command
def run(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Run every stage of a recipe that is missing or out of date, up to the report."""
    _run_until("report", recipe, overrides, out, update=update, dry_run=dry_run)


@command
def prompts(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Build the text pool: read the prompts, drop duplicates and empty lines, split seen from unseen."""
    _run_until("prompts", recipe, overrides, out, update=update, dry_run=dry_run)


@command
def cache(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    update: Update = False,
    dry_run: DryRun = False,
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every shard with its checksum.")] = False,
) -> None:
    """Let the teacher draw the cached latents; goes on after the last whole shard."""
    if verify and dry_run:
        raise CondistillError("--verify reads shards and --dry-run leaves them alone; give one of the two")
    path = _run_until("cache", recipe, overrides, out, update=update, dry_run=dry_run) / "cache"
    if verify:
        from condistill.cache.latents import LatentCache

        latents = LatentCache.open(path)
        latents.verify()
        say(f"every shard of {path} is as it was written ({len(latents):,} latents)")


@command
def distill(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Derive the students and train them; goes on from the newest checkpoint."""
    _run_until("distill", recipe, overrides, out, update=update, dry_run=dry_run)


@command
def evaluate(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Draw the same prompts from the same noise with every model, and measure: `metrics.json`."""
    _run_until("evaluate", recipe, overrides, out, update=update, dry_run=dry_run)


@command
def report(
    recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False, dry_run: DryRun = False
) -> None:
    """Write the report: one self-contained page, `report.html`."""
    _run_until("report", recipe, overrides, out, update=update, dry_run=dry_run)


def _seeds(text: str) -> tuple[int, ...]:
    """The seeds of `0,1,2`."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < len(words):
        raise CondistillError(f"--seeds {text!r} is no list of different whole numbers; write them as in 0,1,2")
    return tuple(map(int, words))


@command
def sweep(
    recipe: RecipePath,
    *,
    grid: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="KEY=[VALUE,...]", help="Values of a setting. Repeat for every combination with another."),
    ] = None,
    case: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME: KEY=VALUE ...", help="A case by name, with what it changes. Repeat for more."),
    ] = None,
    seeds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="N,N,...", help="Seeds, as in 0,1,2: every case once with each. Default: the recipe's."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="The sweep's directory. Default: `runs/NAME-sweep`."),
    ] = None,
    update: Update = False,
    equal_forwards: Annotated[
        bool,
        typer.Option(
            "--equal-forwards", help="Give every case the steps that cost as many forwards as the recipe's own."
        ),
    ] = False,
) -> None:
    """Run a recipe in several cases over seeds, and write one table with spreads and a plot.

    The cases are those of `--case` and `--grid`, or else the recipe's own variants. Cases that differ in `student`
    and `distill` only share prompts, cache and the teacher's evaluation. A sweep goes on where it was stopped.
    """
    from condistill.workflow.sweep import run_sweep
    from condistill.workflow.sweep_cases import Sweep

    asked = Sweep(
        recipe, grid or (), case or (), () if seeds is None else _seeds(seeds), overrides or (), equal_forwards
    )
    run_sweep(asked, out or Path("runs") / f"{recipe.stem}-sweep", update=update, console=console)


@command
def sample(
    pipeline: Annotated[
        str, typer.Argument(help="A pipeline directory or hub name, or `miniature`.", show_default=False)
    ],
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("sample.png"),
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.", min=0)] = 0,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Sampling steps. Default: what the pipeline was made for, else 25.", min=1),
    ] = None,
    guidance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Guidance scale. Default: what the pipeline was made for, else 7.5.", min=0),
    ] = None,
) -> None:
    """Draw one picture with a finished pipeline; the same seed is the same noise for teacher and student."""
    from condistill.pipelines.generate import generate_image

    say(f"wrote {generate_image(pipeline, prompt, out, seed=seed, steps=steps, guidance=guidance)}")


@command
def doctor() -> None:
    """Tell versions and devices, what is missing and how to get it."""
    from condistill.cli.doctor import examine

    if not examine(Console()):
        raise CondistillError("something that condistill needs is missing; see above")


_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""click's, or that of typer's own copy of click."""


def _split_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, and whether it was there; what follows `--` is left alone."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*options, *arguments[end:]], len(options) < end


def _fail(text: str, code: int) -> None:
    console.print("[red]error:[/] ", end="")
    say(text)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """The `condistill` command: exit code 0 only on success, an error in one readable line."""
    given, debug = _split_debug(list(sys.argv[1:] if arguments is None else arguments))
    quiet_environment()
    keep_freed_memory()
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            sys.exit(app(given, prog_name="condistill", standalone_mode=False))
    except (Stopped, KeyboardInterrupt, typer.Abort):
        say("stopped; what is finished is kept: run the same command again to go on")
        sys.exit(EXIT_INTERRUPTED)
    except _UsageError as error:
        code: int = getattr(error, "exit_code", 2)
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(code)
        _fail(usage(error), code)
    except Exception as error:
        if debug:
            raise
        _fail(told(error), EXIT_FAILED)
