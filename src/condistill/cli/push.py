"""The command that uploads a pipeline to the Hugging Face Hub."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from condistill.cli.app import command, console, pipeline_name, say, user_path
from condistill.errors import CondistillError
from condistill.utils.terminal import print_line


@command
def push(
    pipeline: Annotated[
        str,
        typer.Argument(
            parser=pipeline_name,
            metavar="RUN_OR_PIPELINE",
            help="Run directory or pipeline directory.",
            show_default=False,
        ),
    ],
    *,
    to: Annotated[str, typer.Option(metavar="NAMESPACE/NAME", help="Repository on the hub.", show_default=False)],
    student: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation
        typer.Option(metavar="NAME", help="Which student of a run. Default: the only one."),
    ] = None,
    export: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="FORMAT", help="Send the export in this format too. Can be repeated."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everyone see it. Default: private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send without a question.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")] = False,
) -> None:
    """Upload a finished pipeline to the Hugging Face Hub, private unless you say `--public`.

    Shows the files, their sizes, the head of the model card and what is there already, and asks before anything is
    sent. Everything is one commit, and no file on the hub is deleted; where the upload was interrupted, the same
    command resumes it. The token is that of `HF_TOKEN` or of `hf auth login`.

    Changes no file here. Pickles, other files in the pipeline's directory, and files with paths of this machine are not
    sent.
    """
    from condistill.export import find_source
    from condistill.export.hub import Hub, check_name, described
    from condistill.export.shipment import shipment
    from condistill.utils.format import byte_size
    from condistill.utils.progress import working

    name = check_name(to)
    if not (yes or dry_run or _is_interactive()):
        raise CondistillError(
            "push asks before it sends, and there is no terminal for the answer; add --yes, or --dry-run"
        )
    source = find_source(str(user_path(pipeline)), student=student)
    sent = shipment(source, name, tuple(dict.fromkeys(export or ())))
    hub = Hub()
    repository = hub.find(name)
    for line in described(sent, repository, public=public):
        say(line)
    for warning in sent.warnings:
        print_line(console, f"warning: {warning}", style="yellow")
    if dry_run:
        say("nothing was sent: --dry-run")
        return
    if not yes and not typer.confirm(f"send {len(sent.sizes)} files to {name}?", err=True):
        raise CondistillError("nothing was sent")
    with working(console, f"sending {byte_size(sum(sent.sizes.values()))} to {name}", after_sec=2.0):
        address = hub.send(sent, repository, public=public)
    say(f"sent: {address}")


def _is_interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
