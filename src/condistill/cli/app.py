"""The command's frame: the application, its console, and the options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from typer.core import TyperGroup

from condistill.cli.texts import EXAMPLES


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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved recipe and what it would cost; write nothing.")
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command under its function's name, with its examples at the end of its help."""
    examples = "\n\n".join(f"- `{line}`" for line in EXAMPLES[function.__name__])  # a line each, which a list keeps
    return app.command(epilog=f"Examples:\n\n{examples}")(function)


def say(text: str) -> None:
    """A line to the user, as it is: not wrapped, so that paths can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
