"""The command that serves the local web page."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

import typer

from condistill.cli.app import command, pipeline_name, say


@command
def studio(
    sources: Annotated[
        list[str],
        typer.Argument(
            parser=pipeline_name,
            metavar="RUN_OR_PIPELINE",
            help="Run directories, and pipelines: a directory, a hub name, one safetensors file, or `miniature`.",
            show_default=False,
        ),
    ],
    *,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to serve on. Any but this machine's own needs a password.")
    ] = "127.0.0.1",
    port: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Port to serve on. Default: the first free one from 7860.", min=1, max=65535),
    ] = None,
    password: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="TEXT",
            envvar="CONDISTILL_STUDIO_PASSWORD",
            help="Password for the page, with any user name. Other users of this machine can see it in the list of "
            "processes, so prefer the environment variable.",
        ),
    ] = None,
    device: Annotated[
        Optional[Literal["cpu", "cuda"]],  # noqa: UP045
        typer.Option(metavar="NAME", help="`cpu` or `cuda`. Default: a GPU where there is one."),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
) -> None:
    """Open a local web page: a prompt's images from teacher and students, side by side, from the same noise.

    Of a run, the page also shows the cache with its prompts, and follows a distillation live: losses, previews, time
    left. Models are loaded when they are first needed, and what they share is loaded once. One request at a time uses
    the device; others wait in a line whose length is shown, and can be stopped.

    Needs `pip install "condistill[studio]"`. Reads runs and pipelines. Writes no file, and loads nothing from the
    internet but a hub name's files. Ctrl-C ends it.
    """
    from condistill.studio.run import StudioOptions, run_studio

    run_studio(sources, StudioOptions(host, port, password, device, browser), say=say)
