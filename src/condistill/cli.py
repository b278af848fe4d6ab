"""One command per stage, plus run, demo, init, validate, sample and doctor. Parses and delegates."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from condistill.errors import CondistillError
from condistill.recipe import Recipe

app = typer.Typer(
    name="condistill",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Turn a diffusion pipeline (the teacher) and a list of prompts into a smaller, faster pipeline that draws
the same things, without a single training image.

Start with `condistill demo`, which needs no download, then `condistill init TEACHER --prompts FILE` and
`condistill run recipe.yaml`. A run goes on where it was stopped: run the same command again.""",
)
console = Console(stderr=True)
EXIT_INTERRUPTED = 130

RecipePath = Annotated[Path, typer.Argument(help="A recipe file; `condistill init` writes one.", show_default=False)]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Change a setting: `-s distill.steps=1000`. Repeat for more."
    ),
]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", "-o", help="The run's directory. Default: `runs/NAME`, after the recipe's file name."),
]
Update = Annotated[
    bool, typer.Option("--update", help="The directory holds another recipe's run: redo what depends on the change.")
]


def _run_until(recipe: Path, overrides: Sequence[str] | None, out: Path | None, update: bool, stage: str) -> Path:
    loaded = Recipe.load(recipe, overrides or ())
    from condistill.compress import compress

    return compress(loaded, out or Path("runs") / recipe.stem, until=stage, update=update, console=console)  # type: ignore[arg-type]


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's directory.")] = Path("runs/demo"),
    overrides: Overrides = None,
) -> None:
    """Show the whole thing on the embedded miniature: no download, about ten minutes on two cores.

    A quarter of the shapes are left out of the cached prompts. The same student is distilled twice, plainly and
    with random conditioning, and a judge tells which of them can draw the shapes it never saw.
    """
    from condistill.compress import compress
    from condistill.miniature.demo import demo_recipe

    compress(demo_recipe(overrides or ()), out, console=console)


@app.command()
def init(
    teacher: Annotated[str, typer.Argument(help="A diffusers pipeline directory or hub name.", show_default=False)],
    prompts: Annotated[
        list[Path], typer.Option("--prompts", "-p", help="Prompts: txt, csv, jsonl or parquet. Repeat for more.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for a teacher and its prompts."""
    from condistill.init import write_recipe

    path = write_recipe(teacher, prompts, out)
    console.print(f"wrote {path}; read it, then: condistill run {path}", highlight=False)


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe and print it with every default filled in; nothing is loaded."""
    loaded = Recipe.load(recipe, overrides or ())
    from condistill.teachers.load import family_class, read_index

    _, index = read_index(loaded.teacher)
    family = family_class(loaded.teacher, index)
    typer.echo(loaded.to_yaml(), nl=False)
    console.print(f"{recipe} is valid; the teacher is of family {family.name}", highlight=False)


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Run every stage of a recipe that is missing or out of date, up to the report."""
    _run_until(recipe, overrides, out, update, "report")


@app.command()
def prompts(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Build the text pool: read the prompts, drop duplicates and empty lines, split seen from unseen."""
    _run_until(recipe, overrides, out, update, "prompts")


@app.command()
def cache(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    update: Update = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every shard with its checksum.")] = False,
) -> None:
    """Let the teacher draw the cached latents; goes on after the last whole shard."""
    path = _run_until(recipe, overrides, out, update, "cache")
    if verify:
        from condistill.cache.latents import LatentCache

        latents = LatentCache.open(path / "cache")
        latents.verify()
        console.print(f"every shard of {path / 'cache'} is as it was written ({len(latents):,} latents)")


@app.command()
def distill(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Derive the students and train them; goes on from the newest checkpoint."""
    _run_until(recipe, overrides, out, update, "distill")


@app.command()
def evaluate(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Draw the same prompts from the same noise with every model, and measure: `metrics.json`."""
    _run_until(recipe, overrides, out, update, "evaluate")


@app.command()
def report(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Write the report: one self-contained page, `report.html`."""
    _run_until(recipe, overrides, out, update, "report")


@app.command()
def sample(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline directory, a student's or a teacher's.")],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("sample.png"),
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 25,
    guidance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Guidance scale. Default: what the pipeline's card says, else 7.5.", min=0),
    ] = None,
) -> None:
    """Draw one picture with a finished pipeline."""
    from condistill.sample import draw_picture

    path = draw_picture(pipeline, prompt, out, seed=seed, steps=steps, guidance=guidance)
    console.print(f"wrote {path}", highlight=False)


@app.command()
def doctor() -> None:
    """Tell versions and devices, what is missing and how to get it."""
    from condistill.doctor import examine

    if not examine(Console()):
        raise CondistillError("something that condistill needs is missing; see above")


def _quiet_libraries() -> None:
    """Their advice is for developers; what a user needs to know we say ourselves."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(diffusers|transformers|torch|accelerate)\b")


def _told(error: BaseException) -> tuple[str, int] | None:
    """What a user is told of an error, and the exit code; None for a bug of ours."""
    if isinstance(error, CondistillError):
        return str(error), 1
    if isinstance(error, KeyboardInterrupt):
        return "stopped; what is finished is kept: run the same command again to go on", EXIT_INTERRUPTED
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" for {error.filename}" if error.filename else ""
        return f"no space is left on the disk{place}; free some and run the same command again to go on", 1
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """The `condistill` command: exit code 0 only on success, an error in one readable line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    _quiet_libraries()
    try:
        app(given, standalone_mode=False)
    except typer.Exit as leaving:
        sys.exit(leaving.exit_code)
    except (CondistillError, KeyboardInterrupt, OSError) as error:
        told = _told(error)
        if debug or told is None:
            raise
        console.print("[red]error:[/] ", end="")
        console.print(told[0], markup=False, highlight=False, soft_wrap=True)
        sys.exit(told[1])
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)
