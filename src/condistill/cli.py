"""One command per stage, plus run, sweep, demo, init, validate, sample and doctor. Parses and delegates."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from condistill import __version__
from condistill.errors import CondistillError
from condistill.memory import keep_freed_memory
from condistill.quiet import quiet_environment

if TYPE_CHECKING:
    from condistill.compression import StageName

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("condistill demo", "condistill demo --out runs/short -s distill.steps=300"),
    "init": (
        "condistill init ./my-pipeline --prompts prompts.txt",
        "condistill init org/model -p a.parquet -p b.csv -o recipe.yaml",
    ),
    "validate": ("condistill validate recipe.yaml", "condistill validate recipe.yaml -s student.preset=c-small"),
    "run": (
        "condistill run recipe.yaml",
        "condistill run recipe.yaml -o runs/long -s distill.steps=100000",
        "condistill run recipe.yaml -s evaluate.prompts_per_split=500 --update",
    ),
    "prompts": ("condistill prompts recipe.yaml",),
    "cache": ("condistill cache recipe.yaml", "condistill cache recipe.yaml --verify"),
    "distill": ("condistill distill recipe.yaml",),
    "evaluate": ("condistill evaluate recipe.yaml",),
    "report": ("condistill report recipe.yaml --out runs/recipe",),
    "sweep": (
        "condistill sweep recipe.yaml --seeds 0,1,2",
        'condistill sweep recipe.yaml --grid "student.width=[0.5, 0.25]" --grid "distill.learning_rate=[5.0e-5]"',
        'condistill sweep recipe.yaml --case "plain: distill.random_conditioning.schedule=none" --case "as_it_is:"',
    ),
    "sample": (
        'condistill sample runs/recipe/pipelines/random_conditioning "a red fox"',
        'condistill sample miniature "a small red star" -o star.png',
    ),
    "doctor": ("condistill doctor",),
}
"""What the help of every command ends with."""


class Stopped(Exception):  # noqa: N818 - no error
    """Ctrl-C."""


class Commands(TyperGroup):
    """Tells Ctrl-C apart from other exits, of which typer makes one thing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped from error


app = typer.Typer(
    name="condistill",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True)

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


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command under its function's name, with its examples at the end of its help."""
    examples = "\n\n".join(f"- `{line}`" for line in EXAMPLES[function.__name__])  # a line each, which a list keeps
    return app.command(epilog=f"Examples:\n\n{examples}")(function)


def say(text: str) -> None:
    """A line to the user, as it is: not wrapped, so that paths can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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


def _run_until(stage: StageName, recipe: Path, overrides: Sequence[str] | None, out: Path | None, update: bool) -> Path:
    from condistill.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())  # a mistake is told before anything heavy is imported
    from condistill.compression import compress

    return compress(loaded, out or Path("runs") / recipe.stem, until=stage, update=update, console=console)


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's directory.")] = Path("runs/demo"),
    overrides: Overrides = None,
    update: Update = False,
) -> None:
    """Show the whole thing on the embedded miniature: no download, about ten minutes on two cores.

    A quarter of the shapes are left out of the cached prompts. The same student is distilled twice, plainly and
    with random conditioning, and a judge tells which of them can draw the shapes it never saw.
    """
    from condistill.miniature.demo import demo_recipe

    recipe = demo_recipe(overrides or ())
    from condistill.compression import compress

    compress(recipe, out, update=update, console=console)


@command
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
    say(f"wrote {path}; read it, then: condistill run {path}")


@command
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe, its teacher and its prompt files, and print it with every default filled in.

    Nothing is loaded and nothing is written.
    """
    from condistill.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from condistill.compression import check_inputs

    family = check_inputs(loaded)
    typer.echo(loaded.to_yaml(), nl=False)
    say(f"{recipe} is valid; the teacher is of family {family.name}")


@command
def run(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Run every stage of a recipe that is missing or out of date, up to the report."""
    _run_until("report", recipe, overrides, out, update)


@command
def prompts(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Build the text pool: read the prompts, drop duplicates and empty lines, split seen from unseen."""
    _run_until("prompts", recipe, overrides, out, update)


@command
def cache(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Out = None,
    update: Update = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every shard with its checksum.")] = False,
) -> None:
    """Let the teacher draw the cached latents; goes on after the last whole shard."""
    path = _run_until("cache", recipe, overrides, out, update) / "cache"
    if verify:
        from condistill.cache.latents import LatentCache

        latents = LatentCache.open(path)
        latents.verify()
        say(f"every shard of {path} is as it was written ({len(latents):,} latents)")


@command
def distill(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Derive the students and train them; goes on from the newest checkpoint."""
    _run_until("distill", recipe, overrides, out, update)


@command
def evaluate(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Draw the same prompts from the same noise with every model, and measure: `metrics.json`."""
    _run_until("evaluate", recipe, overrides, out, update)


@command
def report(recipe: RecipePath, overrides: Overrides = None, out: Out = None, update: Update = False) -> None:
    """Write the report: one self-contained page, `report.html`."""
    _run_until("report", recipe, overrides, out, update)


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
    from condistill.sweep import Sweep, run_sweep

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
    from condistill.sample import draw_picture

    say(f"wrote {draw_picture(pipeline, prompt, out, seed=seed, steps=steps, guidance=guidance)}")


@command
def doctor() -> None:
    """Tell versions and devices, what is missing and how to get it."""
    from condistill.doctor import examine

    if not examine(Console()):
        raise CondistillError("something that condistill needs is missing; see above")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    """Whether a disk or a quota is full: some libraries say so in words only."""
    numbered = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return numbered or any(words in str(error) for words in ("No space left", "quota exceeded"))


def _told(error: Exception) -> str:
    """What a user is told of an error."""
    for cause in _chain(error):
        if _is_full(cause):
            place = f" for {cause.filename}" if isinstance(cause, OSError) and cause.filename else ""
            return f"no space is left on the disk{place}; free some and run the same command again to go on"
    if isinstance(error, CondistillError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for this
        return "the device is out of memory; lower cache.batch_size, distill.micro_batch_size or evaluate.batch_size"
    what = (str(error).splitlines() or [""])[0]
    return f"unexpected: {type(error).__name__}: {what} (a bug: run with --debug for the traceback)"


_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""click's, or that of typer's own copy of click."""


def _usage(error: Any) -> str:
    """What a user is told of a command that is not one; of no command at all, typer has printed the help."""
    path = error.ctx.command_path if getattr(error, "ctx", None) else "condistill"
    return f"{error.format_message().rstrip('.')}; `{path} --help` shows how it is used"


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
        _fail(_usage(error), code)
    except Exception as error:
        if debug:
            raise
        _fail(_told(error), EXIT_FAILED)
