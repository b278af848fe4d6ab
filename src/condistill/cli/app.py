"""The typer application, its console, and the arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from condistill import __version__
from condistill.cli.metavars import Command, Group, with_metavars
from condistill.cli.texts import EXAMPLES
from condistill.errors import CondistillError
from condistill.utils.terminal import print_line


class Interrupted(Exception):  # noqa: N818 - the user pressed Ctrl-C, which is no error
    """An interruption with Ctrl-C."""


class CommandGroup(Group):
    """A command group that raises `Interrupted` on Ctrl-C, which typer would turn into an ordinary exit."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands in the order of `EXAMPLES`, which is that of their use."""
        return sorted(super().list_commands(ctx), key=[*EXAMPLES].index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    name="condistill",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True)


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"condistill {__version__}")
        raise typer.Exit


@app.callback()
@with_metavars
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


def user_path(text: str) -> Path:
    """Return a path in which `~` is the home directory; no shell replaces it in `--out=~/x`.

    Raises:
        CondistillError: the path begins with `~NAME`, and there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise CondistillError(f"{text}: the home directory of this user is unknown; write the whole path") from error


def out_option(help: str) -> Any:
    """Return the option `--out` of a command, which takes a path."""
    return typer.Option("--out", "-o", parser=user_path, metavar="PATH", help=help)


def pipeline_name(text: str) -> str:
    """Return the name of a pipeline that is not empty.

    Raises:
        CondistillError: it is empty.
    """
    if not text.strip():
        raise CondistillError("the name of the pipeline is empty; give a directory, a hub name, or miniature")
    return text


RecipePath = Annotated[
    Path,
    typer.Argument(
        parser=user_path, metavar="RECIPE", help="Recipe file; `condistill init` writes one.", show_default=False
    ),
]
PipelineName = Annotated[
    str,
    typer.Argument(
        parser=pipeline_name,
        metavar="PIPELINE",
        help="Pipeline directory, hub name, one safetensors file, or `miniature`.",
        show_default=False,
    ),
]
Variant = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="NAME", help="Variant of the weight files, such as fp16. Default: none, or the only one."),
]
Revision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="NAME", help="Branch, tag or commit of a hub name."),
]
Configs = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--config", metavar="PATH", help="Directory with the configs of a pipeline in one file."),
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a setting: `-s distill.steps=1000`. Can be repeated."
    ),
]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    out_option("Run directory. Default: `runs/NAME` for a recipe file `NAME.yaml`."),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        help="Where settings or files changed: move the results that depend on them to `old/DATE`, and redo them.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan with its costs; write nothing.")
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command under the name of its function, and add its examples to the end of its help."""
    examples = "\n\n".join(f"- `{line}`" for line in EXAMPLES[function.__name__])  # typer joins lines of one paragraph
    return app.command(cls=Command, epilog=f"Examples:\n\n{examples}")(with_metavars(function))


def say(text: str) -> None:
    """Print one line for the user."""
    print_line(console, text)
